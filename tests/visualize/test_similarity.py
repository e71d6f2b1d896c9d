"""NEPA's maps of similarity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from pictures import assert_picture

from nepa_jax.objectives import nepa
from nepa_jax.visualize import similarity


@pytest.fixture(scope="module")
def model():
    return nepa.init_model(small.resolved("nepa"), nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def test_picture_is_written(model, images, tmp_path):
    assert_picture(similarity.draw(model, images, tmp_path / "nepa.png"))


def test_diagonal_is_what_the_loss_averages(model, images):
    cosines = similarity.prediction_similarity(model, jnp.asarray(images))
    batch = {"image": jnp.asarray(images), "row": jnp.arange(3)}
    loss, _ = nepa.loss(model, None, batch, jax.random.key(0))
    own = np.diagonal(cosines, axis1=1, axis2=2)
    np.testing.assert_allclose(-own.mean(), loss, atol=1e-5)


def test_queries_are_the_patches_with_something_on_them():
    image = np.zeros((8, 8, 3), np.uint8)
    for top, left in ((0, 2), (4, 4), (6, 0)):
        image[top, left] = 255
    np.testing.assert_array_equal(similarity.choose_queries(image, (4, 4)), [1, 10, 12])
