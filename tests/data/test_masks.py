"""The classes of pixels go with their image: through crops, flips, hosts and worker processes."""

from dataclasses import replace
from pathlib import Path

import masked
import numpy as np
import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.data.loader import Loader, LoaderConfig, iter_epoch
from nepa_jax.data.masks import MaskRule
from nepa_jax.data.prepare.split import prepare
from nepa_jax.data.settings import problems
from nepa_jax.data.transforms import GRAY, of_masks, transform

FIXTURES = Path(__file__).parents[1] / "fixtures" / "golden2"


def test_zero_labels_as_mmsegmentation_reduces_them():
    with np.load(FIXTURES / "segmentation.npz") as golden:
        labels, wanted = golden["zero_label/input"], golden["zero_label/output"]
    np.testing.assert_array_equal(MaskRule(reduce_zero_label=True).table()[labels], wanted)


def moved(config, classes, seed):
    """An image that is its mask, in the red channel, and the mask: both as a loader makes them."""
    pixels = np.repeat(classes[..., None] * 60, 3, axis=2)
    mask = np.empty((*config.image_size, 1), np.uint8)
    window = transform(of_masks(config), classes[..., None], np.random.default_rng(seed), mask)
    image = np.empty((*config.image_size, 3), np.uint8)
    transform(config, pixels, np.random.default_rng(seed), image, window)
    return image[..., 0], mask[..., 0]


@pytest.mark.parametrize("crop", ["random", "center", "scale_jitter", "whole"])
def test_a_mask_moves_as_its_image(crop):
    config = LoaderConfig(image_size=(24, 32), crop=crop, interpolation="bilinear")
    classes = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) % 4, np.ones((20, 20), np.uint8))
    flips = 0
    for seed in range(30):
        image, mask = moved(config, classes, seed)
        assert {*np.unique(mask)} <= {0, 1, 2, 3, 255}  # never a mean of two classes
        inside = mask != 255
        assert (image[~inside] == GRAY).all()
        assert np.mean(np.round(image[inside] / 60) == mask[inside]) > 0.8  # all but the borders
        flips += bool(mask[0, 0] != moved(replace(config, flip=False), classes, seed)[1][0, 0])
    assert flips > 5


def test_the_jitter_is_from_half_to_double_the_size_that_covers_the_crop():
    config = LoaderConfig(image_size=(40, 40), crop="scale_jitter", flip=False)
    classes = np.zeros((60, 80), np.uint8)
    classes[:, ::8] = 1  # a grid whose lines tell the scale
    seen = [moved(config, classes, seed)[1] for seed in range(300)]
    rows = np.array([(mask != 255).any(axis=1).sum() for mask in seen])
    assert rows.min() in (20, 21) and rows.max() == 40  # half the size leaves 20 of the 40 rows
    full = np.mean(rows == 40)
    assert 0.6 < full < 0.77  # a uniform ratio in [.5, 2] is 1 or more in two thirds
    whole = next(mask for mask, count in zip(seen, rows, strict=True) if count == 20)
    assert (whole != 255).any(axis=0).sum() in (26, 27)  # and of the 53 columns half


def most_of_one_class(mask):
    counts = np.bincount(mask.ravel(), minlength=256)[:255]
    return counts.max() / counts.sum() if counts.any() else 1.0


def test_a_window_in_which_one_class_is_nearly_all_gives_way_to_another():
    """As mmsegmentation's cat_max_ratio; the size stays, and the image goes with its mask."""
    config = LoaderConfig(image_size=(24, 24), crop="scale_jitter", interpolation="bilinear")
    strict = replace(config, max_class_share=0.75)
    classes = np.zeros((60, 80), np.uint8)
    classes[:, 35:] = 1
    classes[:, 70:] = 255  # of no class, and counted by none
    shares = {each: [most_of_one_class(moved(each, classes, s)[1]) for s in range(150)]
              for each in (config, strict)}  # fmt: skip
    above = {each: np.mean(np.array(found) >= 0.75) for each, found in shares.items()}
    assert above[config] > 0.3 and above[strict] < 0.05, above
    for seed in range(30):
        image, mask = moved(strict, classes, seed)
        inside = mask < 2
        assert np.mean(np.round(image[inside] / 60) == mask[inside]) > 0.8
    one_class = np.zeros((60, 80), np.uint8)
    assert moved(strict, one_class, 0)[1].shape == (24, 24)  # the last window, then


@pytest.fixture
def config(tmp_path):
    tree = masked.write_tree(tmp_path / "tree", count=10)
    prepare(str(tree), str(tmp_path / "set"))
    return LoaderConfig(
        str(tmp_path / "set"), image_size=(16, 16), batch_size=4, masks=True, crop="scale_jitter",
        num_threads=1,
    )  # fmt: skip


def batches(config, num_hosts=1):
    loaders = [Loader(config, host, num_hosts) for host in range(num_hosts)]
    found = [[loader.batch(step) for loader in loaders] for step in range(6)]
    for loader in loaders:
        loader.close()
    return [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} for parts in found
    ]


def test_masks_are_the_same_for_any_number_of_hosts_and_processes(config):
    config = replace(config, max_class_share=0.6, augment="photometric")
    wanted = batches(config)
    assert wanted[0]["mask"].shape == (4, 16, 16) and wanted[0]["mask"].dtype == np.uint8
    assert "label" not in wanted[0]
    for change, hosts in ((dict(), 2), (dict(num_workers=1), 1)):
        for ours, theirs in zip(batches(replace(config, **change), hosts), wanted, strict=True):
            np.testing.assert_array_equal(ours["mask"], theirs["mask"])
            np.testing.assert_array_equal(ours["image"], theirs["image"])


def test_a_batchs_masks_are_those_of_its_images(config):
    for batch in batches(replace(config, max_class_share=0.6)):
        distance = np.abs(batch["image"][..., None, :].astype(int) - masked.COLORS[:3]).sum(axis=-1)
        known = batch["mask"] != 255
        assert np.mean(distance.argmin(axis=-1)[known] == batch["mask"][known]) > 0.8


def test_masks_change_nothing_of_the_images(config):
    plain = replace(config, masks=False)
    for ours, theirs in zip(batches(config), batches(plain), strict=True):
        np.testing.assert_array_equal(ours["image"], theirs["image"])
        assert "mask" not in theirs


def test_an_epoch_for_evaluation_has_no_classes_in_rows_that_are_none(config):
    config = replace(config, crop="center", flip=False, crop_pct=1.0)
    *_, last = iter_epoch(config)
    assert list(last.account.valid) == [True, True, False, False]
    assert (last.batch["mask"][2:] == 255).all() and (last.batch["mask"][:2] < 3).all()


@pytest.mark.trial
def test_a_set_without_masks_and_what_does_not_move_them(prepared):
    with pytest.raises(UserError, match="has no masks: prepare a folder with images/SPLIT"):
        Loader(LoaderConfig(prepared, image_size=(16, 16), batch_size=4, masks=True))
    (line,) = problems(LoaderConfig("DIR", masks=True, augment="rand_augment"))
    assert line.startswith("data.augment = rand_augment: moves pixels")
    for wrong in (dict(masks=False, crop="scale_jitter"), dict(masks=True, crop="random")):
        (line,) = problems(LoaderConfig("DIR", max_class_share=0.75, **wrong))
        assert line.startswith("data.max_class_share = 0.75: is of data.masks=True and data.crop=")
