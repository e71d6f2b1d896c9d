"""The demo's images: real, balanced, deterministic, and no pixel in two splits."""

import numpy as np
import pytest

from nepa_jax.demo import photographs


def test_crops_are_gray_balanced_and_a_function_of_the_seed():
    images, labels = photographs.crops("train", 64, seed=1)
    assert images.shape == (64, 32, 32, 3) and images.dtype == np.uint8
    assert np.array_equal(images[..., 0], images[..., 2])
    assert np.bincount(labels).tolist() == [4] * len(photographs.CLASSES)
    again, _ = photographs.crops("train", 64, seed=1)
    other, _ = photographs.crops("train", 64, seed=2)
    assert np.array_equal(images, again) and not np.array_equal(images, other)


def test_brightness_and_contrast_are_equal_up_to_clipping():
    images, _ = photographs.crops("test", 64, seed=0)
    assert np.all(np.abs(images.mean(axis=(1, 2, 3)) - 128) < 16)
    assert np.all(np.abs(images.std(axis=(1, 2, 3)) - 48) < 24)


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
