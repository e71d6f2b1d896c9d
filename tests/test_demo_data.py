"""The demo's data: the same every time, and splits that share no digit."""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from nepa_jax import demo_data
from nepa_jax.errors import UserError

SPLITS = tuple(demo_data.SOURCES)


def test_images_and_labels_have_the_promised_form():
    images, labels = demo_data.cluttered_digits("train", 30, seed=0)
    assert images.shape == (30, 32, 32, 3) and images.dtype == np.uint8
    assert labels.shape == (30,) and labels.dtype == np.int32
    assert np.all(images[..., 0] == images[..., 2]) and images.max() > 200


def test_same_seed_same_images_and_other_seed_other_images():
    first, again, other = (demo_data.cluttered_digits("train", 8, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert np.all(np.any(first[0] != other[0], axis=(1, 2, 3)))


def test_fewer_images_are_the_first_of_more():
    few, _ = demo_data.cluttered_digits("test", 5, seed=0)
    many, _ = demo_data.cluttered_digits("test", 9, seed=0)
    np.testing.assert_array_equal(few, many[:5])


def test_splits_share_no_source_digit_and_use_all():
    scans = {scan.tobytes() for scan in np.asarray(load_digits().images)}
    used = [image.tobytes() for split in SPLITS for image in demo_data.source_digits(split)[0]]
    assert len(used) == 1797 == len(scans)
    assert len(set(used)) == len(used)


def test_each_split_draws_fragments_from_its_own_digits(monkeypatch):
    """With a split's own digits blacked out its canvases are black: nothing comes from others."""
    original = demo_data.source_digits
    monkeypatch.setattr(
        demo_data, "source_digits", lambda split: (original(split)[0] * 0, original(split)[1])
    )
    assert demo_data.cluttered_digits("test", 20, seed=0)[0].max() == 0


def test_a_returning_digit_comes_at_another_place():
    count = demo_data.SOURCES["validation"]
    images, labels = demo_data.cluttered_digits("validation", 2 * count, seed=0)
    np.testing.assert_array_equal(labels[:count], labels[count:])
    assert np.all(np.any(images[:count] != images[count:], axis=(1, 2, 3)))


def test_png_records_are_lossless():
    images, labels = demo_data.cluttered_digits("train", 4, seed=0)
    records = list(demo_data.png_records(images, labels, "train"))
    decoded = [np.asarray(Image.open(io.BytesIO(data))) for data, _, _ in records]
    np.testing.assert_array_equal(decoded, images)
    assert [label for _, label, _ in records] == labels.tolist()
    assert len({name for _, _, name in records}) == 4


def test_unknown_split_is_the_users_error():
    with pytest.raises(UserError, match="validation"):
        demo_data.cluttered_digits("val", 1, seed=0)
