"""Feature extraction over a small model of each kind."""

import numpy as np
import pytest
import small
from flax import nnx

from nepa_jax.base.errors import UserError
from nepa_jax.evals import features
from nepa_jax.objectives import nepa


@pytest.fixture(scope="module")
def model():
    return nepa.init_model(small.resolved("nepa"), nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3)).astype(np.uint8)


def extract(model, images, batch_size, *args):
    return features.extract(nepa, model, features.in_batches(images, batch_size), *args)


def test_every_layer_is_there(model, images):
    out = extract(model, images, 4)
    assert out.shape == (3, 10, 32) and out.dtype == np.float32


@pytest.mark.parametrize("pool", features.POOLS)
def test_padded_last_batch_equals_one_batch(model, images, pool):
    np.testing.assert_allclose(
        extract(model, images, 4, pool), extract(model, images, 10, pool), atol=1e-5
    )


def test_is_deterministic(model, images):
    np.testing.assert_array_equal(extract(model, images, 4), extract(model, images, 4))


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_one_layer_is_that_of_all(model, images, layer):
    every = extract(model, images, 10)
    one = extract(model, images, 10, "mean", layer)
    assert one.shape == (1, 10, 32)
    np.testing.assert_allclose(one[0], every[layer], atol=1e-6)


def test_pools_agree_with_encode(model, images):
    wanted = nepa.encode(model, images, None)
    for pool, tokens in (
        ("mean", wanted.patches.mean(axis=2)),
        ("cls", wanted.cls),
        ("last", wanted.patches[:, :, -1]),
    ):
        np.testing.assert_allclose(extract(model, images, 10, pool), tokens, atol=1e-5)


def test_mistakes_are_named(model, images):
    with pytest.raises(UserError, match="mean, cls, last"):
        extract(model, images, 10, "max")
    with pytest.raises(UserError, match="no images"):
        extract(model, images[:0], 10)
