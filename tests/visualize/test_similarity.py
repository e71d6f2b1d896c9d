"""NEPA's maps of similarity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from pictures import assert_picture

from nepa_jax.objectives import nepa
from nepa_jax.visualize import similarity, style


@pytest.fixture(scope="module")
def model():
    return nepa.init_model(small.resolved("nepa"), nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def test_picture_of_images_of_several_shapes_is_written(model, images, tmp_path):
    shapes = [images[0], np.tile(images[1], (1, 2, 1)), images[2][:8]]
    made = similarity.draw(model, shapes, names=("a", "b", "c"))
    assert_picture(style.save(made, tmp_path / "nepa.png"))
    assert len(made.axes[0].patches) == 18  # three patches of each image, framed there and in a map


def test_one_patch_that_is_asked_for_is_framed_where_it_is(model, images):
    made = similarity.draw(model, images[:1], patch=6)
    frame = made.axes[0].patches[1]
    left = frame.get_xy()[0] - 2 * 17 + 0.5  # the third column; cells of 16 px and gaps of 1
    assert (left, frame.get_xy()[1] + 0.5) == (8, 4)


def test_diagonal_is_what_the_loss_averages(model, images):
    cosines = similarity.prediction_similarity(model, jnp.asarray(images))
    batch = {"image": jnp.asarray(images), "row": jnp.arange(3)}
    loss, _ = nepa.loss(model, None, batch, jax.random.key(0))
    own = np.diagonal(cosines, axis1=1, axis2=2)
    np.testing.assert_allclose(-own.mean(), loss, atol=1e-5)


@pytest.mark.parametrize(
    ("shift", "include_cls", "first"), [(0, True, 0), (2, True, 1), (1, False, 1)]
)
def test_so_it_is_for_the_controls_and_what_nothing_predicts_has_no_value(
    images, shift, include_cls, first
):
    # Without drop path: at shift 0 the loss has a term more, the class token's of itself.
    config = small.resolved(
        "nepa", objective__shift=str(shift), objective__include_cls=str(include_cls)
    )
    model = nepa.init_model(config, nnx.Rngs(0))
    cosines = np.asarray(similarity.prediction_similarity(model, jnp.asarray(images)))
    assert np.isnan(cosines[:, :first]).all() and not np.isnan(cosines[:, first:]).any()
    own = np.diagonal(cosines, axis1=1, axis2=2)[:, first:]
    features = nepa.encode(model, jnp.asarray(images))
    embeddings = model.vit.embed(model.vit.patches(jnp.asarray(images)))
    tokens = np.concatenate([features.cls[:, None], features.patches], axis=1)
    wanted = nepa.cosine(tokens[:, first + 1 - shift : 17 - shift], embeddings[:, first:])
    np.testing.assert_allclose(own, wanted, atol=1e-5)


def test_queries_are_the_patches_with_something_on_them():
    image = np.zeros((8, 8, 3), np.uint8)
    for top, left in ((0, 2), (4, 4), (6, 0)):
        image[top, left] = 255
    np.testing.assert_array_equal(similarity.choose_queries(image, 2), [1, 10, 12])
    np.testing.assert_array_equal(similarity.choose_queries(image[..., :1], 2), [1, 10, 12])
    assert len(similarity.choose_queries(image, 8)) == 1
