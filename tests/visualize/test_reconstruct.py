"""MAE's reconstructions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from pictures import assert_picture

from nepa_jax.objectives import mae
from nepa_jax.objectives.pictured import to_pixels
from nepa_jax.visualize import reconstruct, style

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def model():
    return mae.init_model(small.resolved("mae"), nnx.Rngs(0))


def image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def removed_patches(found, pixels):
    """bool [rows, columns]: all of a patch is gray, where no pixel of the image has that gray."""
    assert not np.any(pixels == reconstruct.REMOVED)
    gray = (found.masked == reconstruct.REMOVED).all(axis=-1)
    tiles = gray.reshape(gray.shape[0] // 4, 4, gray.shape[1] // 4, 4)
    assert (tiles.all(axis=(1, 3)) == tiles.any(axis=(1, 3))).all()
    return tiles.all(axis=(1, 3))


def never_gray(pixels):
    return np.where(pixels == reconstruct.REMOVED, 0, pixels).astype(np.uint8)


def test_picture_of_images_of_several_shapes_is_written(model, tmp_path):
    images = [image(16, 16), image(8, 24), image(32, 8)]
    made = reconstruct.draw(model, images, ratios=(0.5, 0.75))
    assert_picture(style.save(made, tmp_path / "mae.png"))
    labels = [each.get_text() for each in made.axes[0].get_yticklabels()]
    assert labels[:2] == ["image", "50 % removed"] and len(labels) == 7


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 32), (40, 20)])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_exactly_the_asked_share_is_removed_and_the_rest_is_the_image(model, height, width, ratio):
    pixels = never_gray(image(height, width))
    found = reconstruct.rebuild(model, pixels, ratio, KEY)
    removed, count = removed_patches(found, pixels), height * width // 16
    assert found.kept == count - removed.sum() == int(count * (1 - ratio))
    visible = np.kron(~removed, np.ones((4, 4))).astype(bool)
    for part in (found.masked, found.pasted):
        np.testing.assert_array_equal(part[visible], pixels[visible])
    np.testing.assert_array_equal(found.pasted[~visible], found.predicted[~visible])
    assert np.any(found.predicted[visible] != pixels[visible])


def test_images_of_one_size_tell_how_many_patches_are_kept(model):
    made = reconstruct.draw(model, [image(16, 16), image(16, 16, 1)], ratios=(0.75,))
    labels = [each.get_text() for each in made.axes[0].get_yticklabels()]
    assert labels[1] == "75 % removed\n4 of 16 kept"


def test_a_higher_ratio_keeps_a_part_of_what_a_lower_one_keeps(model):
    pixels = never_gray(image(16, 16))
    few, many = (
        removed_patches(reconstruct.rebuild(model, pixels, ratio, KEY), pixels)
        for ratio in (0.5, 0.75)
    )
    assert np.all(many[few])


def test_masks_follow_the_seed(model):
    def removed(seed):
        found = reconstruct.rebuild(model, pixels, 0.5, jax.random.key(seed))
        return removed_patches(found, pixels)

    pixels = never_gray(image(16, 16))
    np.testing.assert_array_equal(removed(1), removed(1))
    assert np.any(removed(1) != removed(2))


def test_ratios_that_keep_nothing_are_not_usable():
    assert reconstruct.usable((0.75, 0.85, 0.95), 16) == [0.75, 0.85]
    assert reconstruct.usable((0.75,), 1) == []


def test_normalised_targets_turn_back_into_the_very_pixels(model):
    pixels = jnp.asarray(image(16, 24))[None]
    patches = model.vit.patches(pixels)
    targets = mae.pixel_targets(patches, norm_pix_loss=True)
    back = mae.denormalize(targets, patches)
    np.testing.assert_allclose(back, patches, atol=1e-5)
    found = to_pixels(model.vit, back, model.vit.grid(pixels))
    np.testing.assert_array_equal(found, pixels)


def test_removed_patches_get_their_own_mean_and_contrast_back(model):
    pixels = image(16, 16)
    pixels[:8] //= 8  # a dark half, of little contrast
    model = nnx.clone(model)
    for norm_pix_loss in (True, False):
        model.norm_pix_loss = norm_pix_loss
        found = reconstruct.rebuild(model, pixels, 0.75, KEY).predicted.astype(float)
        apart = found[8:].mean() - found[:8].mean()
        assert (apart > 50) == norm_pix_loss


def test_one_channel_is_enough(tmp_path):
    config = small.resolved("mae", model__in_channels="1", model__pixel_mean="(0.5,)",
                            model__pixel_std="(0.5,)")  # fmt: skip
    gray = mae.init_model(config, nnx.Rngs(0))
    made = reconstruct.draw(gray, [image(16, 16)[..., :1]], ratios=(0.5,))
    assert_picture(style.save(made, tmp_path / "gray.png"))
