"""Names of folders and files that mean a split, and those that do not."""

import pytest

from nepa_jax.data.prepare.split_names import same_split, split_of, splits_of

NAMED = {
    "train": "train Train TRAIN training train2017 seg_train train_images trainset Training-Set "
    "ILSVRC2012_img_train imagenet1k-train 01_train trainA trainval train-00000-of-00002",
    "val": "val valid validation Validation dev eval val_256x256 minival ILSVRC2012_img_val val_v2",
    "test": "test testing Test testB test-dev2017 testdata holdout test_10k",
    "unlabeled": "unlabeled Unlabelled unlabeled2017",
}
CLASSES = (
    *("trainer", "trains", "train_station", "train station", "test_tube", "test tube", "testa"),
    *("tested", "contest", "bullet_train", "steam train", "device", "valley", "value", "invalid"),
    *("untrained", "latest", "images", "2017", "train_test", ""),
)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for split, names in NAMED.items() for name in names.split()]
)
def test_a_name_means_a_split_in_any_spelling(name, split):
    assert split_of(name) == split


@pytest.mark.trial
@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_no_split(name):
    assert split_of(name) is None


def test_a_beginning_that_all_have_in_common_says_nothing():
    assert splits_of(["cats_train", "cats_test"]) == {"cats_train": "train", "cats_test": "test"}
    assert splits_of(["bullet_train", "steam_train"]) == {}
    assert splits_of(["train", "trainer"]) == {"train": "train"}


def test_the_wanted_split_is_found_by_its_name_or_its_meaning():
    assert same_split(["train", "validation"], "val") == ["validation"]
    assert same_split(["valid", "val"], "val") == ["val"]
    assert same_split(["train2014", "train2017"], "train") == ["train2014", "train2017"]
    assert same_split(["extra", "train"], "extra") == ["extra"]
    assert same_split(["train"], "extra") == []


@pytest.mark.trial
@pytest.mark.parametrize("name", ["1" * 250, "_1" * 120 + "!", "image" * 50 + "x", "px" * 125])
def test_no_name_takes_long(name):
    assert split_of(name) is None
