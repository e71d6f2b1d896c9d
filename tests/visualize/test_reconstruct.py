"""MAE's reconstructions."""

import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from pictures import assert_picture

from nepa_jax.objectives import mae
from nepa_jax.visualize import reconstruct


@pytest.fixture(scope="module")
def model():
    return mae.init_model(small.resolved("mae"), nnx.Rngs(0))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)


def test_picture_is_written(model, images, tmp_path):
    assert_picture(reconstruct.draw(model, images, tmp_path / "mae.png"))


def test_visible_patches_are_the_originals(model, images):
    masked, rebuilt = reconstruct.rebuild(model, images, 0.75)
    removed = np.all(np.isclose(masked, reconstruct.REMOVED_SHADE), axis=-1)
    assert removed.mean() == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(rebuilt[~removed], images[~removed] / 255.0, atol=1e-5)
    np.testing.assert_allclose(masked[~removed], images[~removed] / 255.0, atol=1e-5)


def test_a_higher_ratio_keeps_a_part_of_what_a_lower_one_keeps(model, images):
    few, many = (
        np.all(np.isclose(reconstruct.rebuild(model, images, r)[0], 0.55), -1) for r in (0.5, 0.75)
    )
    assert np.all(many[few])


def test_denormalize_inverts_the_target():
    patches = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 12)), jnp.float32)
    targets = mae.pixel_targets(patches, norm_pix_loss=True)
    np.testing.assert_allclose(reconstruct.denormalize(targets, patches), patches, atol=1e-5)
