"""The demo's images: real, balanced, deterministic, and no pixel in two splits."""

import numpy as np
import pytest

from nepa_jax.demo import photographs


def test_crops_are_balanced_and_a_function_of_the_seed():
    count = 4 * len(photographs.CLASSES)
    images, labels = photographs.crops("train", count, seed=1)
    assert images.shape == (count, 32, 32, 3) and images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [4] * len(photographs.CLASSES)
    again, _ = photographs.crops("train", count, seed=1)
    other, _ = photographs.crops("train", count, seed=2)
    assert np.array_equal(images, again) and not np.array_equal(images, other)


def test_a_photograph_keeps_its_colours_and_a_gray_one_has_none():
    images, labels = photographs.crops("test", len(photographs.CLASSES), seed=0)
    colours = np.ptp(images.astype(int), axis=3).max(axis=(1, 2))
    spread = dict(zip(photographs.CLASSES, colours, strict=True))
    assert labels.tolist() == list(range(len(photographs.CLASSES)))
    assert all(spread[name] == 0 for name in ("brick", "coins", "moon", "page"))
    assert all(spread[name] > 40 for name in ("chelsea", "coffee", "flower", "ihc", "retina"))


def test_brightness_and_contrast_are_equal_up_to_clipping():
    images, _ = photographs.crops("test", 4 * len(photographs.CLASSES), seed=0)
    luma = images @ photographs.LUMA
    within = np.abs(luma.mean(axis=(1, 2)) - 128) < 16, np.abs(luma.std(axis=(1, 2)) - 48) < 16
    assert np.mean(within, axis=1).min() > 0.8  # stars on black and bright colours are clipped


def test_a_crop_shows_half_to_all_of_the_side_of_one_tile():
    rng = np.random.default_rng(0)
    drawn = np.array([photographs.draw_place([(64, 128)], rng) for _ in range(300)])
    top, left, side = drawn.T
    assert side.min() < 36 and side.max() > 60 and np.all((side >= 32) & (side <= 64))
    assert np.all((top >= 64) & (top + side <= 128) & (left >= 128) & (left + side <= 192))


@pytest.mark.parametrize("name", photographs.CLASSES)
def test_every_photograph_has_tiles_in_every_split_and_none_in_two(name):
    tiles = [set(photographs.tiles(name, split)) for split in ("train", "validation", "test")]
    assert all(tiles)
    assert not tiles[0] & tiles[1] | tiles[0] & tiles[2] | tiles[1] & tiles[2]


def test_records_hold_the_pixels_and_the_class():
    images, labels = photographs.crops("test", 3, seed=0)
    records = list(photographs.png_records(images, labels))
    assert [label for _, label, _ in records] == labels.tolist()
    assert records[0][0].startswith(b"\x89PNG") and records[0][2].startswith(photographs.CLASSES[0])
