"""What objectives draw while they train: tiles that say what the method does, of any kind of image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from nepa_jax.models.masking import num_kept
from nepa_jax.models.vit import patchify
from nepa_jax.objectives import mae, nepa
from nepa_jax.objectives.base import load_objective
from nepa_jax.objectives.pictured import (
    COLORS,
    NOTHING,
    STOPS,
    coloured,
    framed,
    of_most_contrast,
    rgb,
    to_pixels,
)


def made(method: str, **changes: str):
    """A small model of a method, and its module."""
    config = small.resolved(method, **changes)
    objective = load_objective(config.objective.name)
    return objective, objective.init_model(config, nnx.Rngs(1))


def test_mae_shows_what_is_left_and_pastes_what_is_seen():
    objective, model = made("mae")
    images = small.images(3)
    drawn = jax.jit(objective.pictures)(model, images)
    image, visible, rebuilt = np.asarray(drawn.tiles).swapaxes(0, 1)
    assert drawn.titles == ("image", "visible", "rebuilt") and drawn.tiles.dtype == jnp.uint8
    np.testing.assert_array_equal(image, images)
    patches = np.asarray(patchify(visible, 4))
    removed = (patches == NOTHING).all(axis=-1)
    assert (removed.sum(axis=1) == 16 - num_kept(16, model.mask_ratio)).all()
    same = (np.asarray(patchify(rebuilt, 4)) == np.asarray(patchify(images, 4))).all(axis=-1)
    np.testing.assert_array_equal(same, ~removed)


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_a_perfect_prediction_rebuilds_the_image(monkeypatch, norm_pix_loss):
    _, model = made("mae")
    model.norm_pix_loss = norm_pix_loss
    perfect = lambda model, patches, *rest: mae.pixel_targets(patches, norm_pix_loss)  # noqa: E731
    monkeypatch.setattr(mae, "reconstruct", perfect)
    images = small.images(2)
    tiles = np.asarray(mae.pictures(model, images).tiles)
    assert np.abs(tiles[:, 2].astype(int) - images).max() <= 1


def test_nepa_shows_each_prediction_beside_its_patch_and_frames_what_it_asks_for():
    objective, model = made("nepa")
    images = small.images(2)
    drawn = jax.jit(objective.pictures)(model, images)
    tiles = np.asarray(drawn.tiles)
    assert (
        tiles.shape == (2, 2 + nepa.NUM_QUERIES, 16, 16, 3) and len(drawn.titles) == tiles.shape[1]
    )
    cosines = nepa.prediction_similarity(model, images)
    own = coloured(jnp.diagonal(cosines, axis1=1, axis2=2), (4, 4), 4)
    np.testing.assert_array_equal(tiles[:, 1], own)
    for number, query in enumerate(np.asarray(of_most_contrast(images, 4, nepa.NUM_QUERIES))[0]):
        tile, (row, column) = tiles[0, 2 + number], divmod(query, 4)
        assert (tile[4 * row, 4 * column : 4 * column + 4] == 0).all()  # the frame
        inside = slice(4 * row + 1, 4 * row + 3), slice(4 * column + 1, 4 * column + 3)
        expected = coloured(cosines[:1, query], (4, 4), 4)[0]
        np.testing.assert_array_equal(tile[inside], expected[inside])
        assert (tile == 0).all(axis=-1).sum() == 12


def test_the_similarity_is_the_loss():
    """Of the mean cosine on the diagonal: what training raises."""
    config = small.resolved("nepa", model__rope_rescale="1.0", model__drop_path_rate="0.0")
    objective = load_objective(config.objective.name)
    model, images = objective.init_model(config, nnx.Rngs(1)), jnp.asarray(small.images(2))
    loss, _ = objective.loss(
        model, None, {"image": images, "row": jnp.arange(2)}, jax.random.key(0)
    )
    cosines = nepa.prediction_similarity(model, images)
    np.testing.assert_allclose(jnp.mean(jnp.diagonal(cosines, axis1=1, axis2=2)), -loss, rtol=1e-4)


@pytest.mark.parametrize(
    ("shift", "include_cls", "missing"), [(1, False, 1), (3, True, 2), (0, True, 0)]
)
def test_patches_that_no_token_predicts_are_gray(shift, include_cls, missing):
    _, model = made("nepa")
    model.shift, model.include_cls = shift, include_cls
    cosines = np.asarray(nepa.prediction_similarity(model, small.images(1)))[0]
    assert np.isnan(cosines).all(axis=1).tolist() == [n < missing for n in range(16)]
    assert not np.isnan(cosines[missing:]).any()
    drawn = np.asarray(coloured(jnp.diagonal(cosines)[None], (4, 4), 4))[0]
    assert (drawn[0, : 4 * missing] == NOTHING).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_any_number_of_channels_and_any_shape(method, channels):
    means = str((0.5,) * channels)
    objective, model = made(
        method, model__in_channels=str(channels), model__pixel_mean=means, model__pixel_std=means,
        model__image_size="(8, 24)",
    )  # fmt: skip
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 24, channels), np.uint8)
    tiles = np.asarray(jax.jit(objective.pictures)(model, images).tiles)
    assert tiles.shape[2:] == (8, 24, 3)
    np.testing.assert_array_equal(tiles[:, 0], rgb(jnp.asarray(images)))


def test_pixels_come_back_as_they_were():
    _, model = made("mae")
    images = small.images(2)
    back = to_pixels(model.vit, model.vit.patches(images), (4, 4))
    np.testing.assert_array_equal(back, images)


def test_colours_are_those_of_the_scale():
    shown = coloured(jnp.array([STOPS]), (1, 5), 2)
    np.testing.assert_array_equal(shown[0, 0, ::2], COLORS)


def test_a_frame_is_in_its_patch_alone():
    white = jnp.full((1, 6, 9, 3), 255, jnp.uint8)
    dark = np.asarray(framed(white, jnp.array([4]), 3))[0].sum(axis=-1) == 0
    assert dark[3:6, 3:6].sum() == 8 and not dark[4, 4] and dark.sum() == 8
