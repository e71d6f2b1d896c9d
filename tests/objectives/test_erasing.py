"""Random erasing against timm's own, and what it leaves alone."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from nepa_jax.objectives.erasing import AREA, LOG_ASPECT, TRIES, Draws, box, erase

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden2"
PIXELS = dict(mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
jitted = jax.jit(erase, static_argnums=(2, 3, 4))


def erased(images, seed, probability=1.0, mean=PIXELS["mean"], std=PIXELS["std"]):
    keys = jax.random.split(jax.random.key(seed), len(images))
    return np.asarray(jitted(images, keys, probability, mean, std))


def unit(values, ends):
    """Numbers of a range as those of [0, 1) that they were drawn by; the rest of the tries fit nothing."""
    found = np.full(TRIES, 0.999)
    found[: len(values)] = (np.array(values) - ends[0]) / (ends[1] - ends[0])
    return found


def test_boxes_are_timms():
    """Those that it tried in vain among them."""
    file = json.loads((GOLDEN / "timm_erasing.json").read_text())["config"]
    wanted = load_file(GOLDEN / "timm_erasing.safetensors")["out.erased"]
    height, width = file["size"]
    tries = []
    for drawn, mask in zip(file["draws per image, in order"], wanted, strict=True):
        uniform = [value for kind, value in drawn if kind == "uniform"]
        place = [value for kind, value in drawn if kind == "randint"] or [0, 0]
        sides = [np.ptp(np.flatnonzero(mask.any(axis))) + 1 if mask.any() else 0 for axis in (1, 0)]
        room = np.array([height, width]) - sides + 1
        draws = Draws(
            np.float32(drawn[0][1]), unit(uniform[::2], AREA), unit(uniform[1::2], LOG_ASPECT),
            (np.array(place) + 0.5) / room,
        )  # fmt: skip
        found = box(jax.tree.map(jnp.float32, draws), (height, width), file["probability"])
        np.testing.assert_array_equal(found, mask)
        tries.append(len(uniform) // 2)
    assert max(tries) > 1


def test_noise_is_standard_normal_after_the_models_normalisation():
    """Beyond black and white too: of noise on [-1, 1] a third lies there."""
    images = jnp.full((64, 48, 48, 3), 7, jnp.uint8)
    found = erased(images, 0)
    noise = found[np.any(found != 7, axis=3)]
    noise = (noise / 255 - PIXELS["mean"]) / PIXELS["std"]
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(noise.std(0), 1, atol=0.02)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 0.03  # each channel by itself
    assert 0.25 < np.mean(np.abs(noise) > 1) < 0.37 and found.min() < -50


def test_one_box_as_often_and_as_large_as_asked():
    images = jnp.full((512, 32, 40, 3), 7, jnp.uint8)
    changed = np.any(erased(images, 1, probability=0.25) != 7, axis=3)
    some = changed.any(axis=(1, 2))
    assert 0.19 < some.mean() < 0.31
    shares = changed[some].mean(axis=(1, 2))
    assert shares.min() > 0.015 and shares.max() < 0.36 and 0.13 < shares.mean() < 0.22
    for mask in changed[some]:  # all of a box, smaller than the image
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum() and rows.sum() < 32 and columns.sum() < 40


def test_pixels_outside_are_left_alone_and_images_draw_by_their_keys():
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8))
    keys = jax.random.split(jax.random.key(0), 8)
    found = np.asarray(jitted(images, keys, 0.5, (0.5,) * 3, (0.5,) * 3))
    assert found.dtype == np.float32
    changed = np.any(found != images, axis=3)
    np.testing.assert_array_equal(found[~changed], np.asarray(images, np.float32)[~changed])
    order = np.array([5, 0, 7])
    part = jitted(images[order], keys[order], 0.5, (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(part, found[order])


@pytest.mark.parametrize("side", [(1, 1), (1, 40), (2, 2)])
def test_of_an_image_that_no_box_is_smaller_than_nothing_is_erased(side):
    images = jnp.full((32, *side, 1), 7, jnp.uint8)
    found = erased(images, 0, mean=(0.5,), std=(0.5,))
    assert np.all(np.isfinite(found))
    if 1 in side:
        np.testing.assert_array_equal(found, images)
