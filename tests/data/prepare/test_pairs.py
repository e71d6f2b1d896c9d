"""Images with class masks: what is a set of them, what its values mean, and what is wrong with one."""

import json
import re
import shutil

import masked
import numpy as np
import pytest
from PIL import Image

from nepa_jax.base.errors import UserError
from nepa_jax.data.masks import MaskRule
from nepa_jax.data.prepare.inspect import inspect, verify
from nepa_jax.data.prepare.pairs import parse_masks
from nepa_jax.data.prepare.split import prepare
from nepa_jax.data.records import open_dataset


@pytest.fixture
def tree(tmp_path):
    return masked.write_tree(tmp_path / "tree", classes="road\nsky\ntree\n")


def prepared(tree, split="train", **options):
    out = str(tree.parent / "out")
    prepare(str(tree), out, split, **options)
    return open_dataset(out, split)


def test_an_image_and_its_mask_are_one_record(tree):
    records = prepared(tree)
    assert (len(records), records.classes, records.labelled) == (6, ("road", "sky", "tree"), False)
    assert records.masks == MaskRule()
    for record in records.read(range(6)):
        assert record.image == (tree / "images" / "training" / record.name).read_bytes()
        assert record.mask == (tree / "annotations" / "training" / record.name).read_bytes()
        number = int(record.name.removesuffix(".png"))
        np.testing.assert_array_equal(records.mask(record, (20, 24)), masked.mask(number))


def test_both_splits_come_from_any_form_of_the_tree(tree, tmp_path):
    inside = tmp_path / "wrapped" / "set"
    shutil.copytree(tree, inside)
    archive = shutil.make_archive(str(tmp_path / "set"), "zip", tree)
    found = [prepare(str(tree), str(tmp_path / "out"), split) for split in ("train", "validation")]
    for number, source in enumerate((inside.parent, archive)):
        again = [
            prepare(str(source), str(tmp_path / f"again{number}"), split)
            for split in ("train", "validation")
        ]
        assert [entry["fingerprint"] for entry in again] == [
            entry["fingerprint"] for entry in found
        ]
    assert [entry["num_examples"] for entry in found] == [6, 2]


def test_a_prepared_set_is_prepared_again_with_its_masks(tree, tmp_path):
    first = prepared(tree, masks="ignore=2")
    entry = prepare(first.path, str(tmp_path / "again"))
    again = open_dataset(tmp_path / "again")
    assert (again.fingerprint, again.masks, again.classes) == (
        first.fingerprint, MaskRule(ignore=2), ("road", "sky"),
    )  # fmt: skip
    assert entry["masks"] == {"ignore": 2, "reduce_zero_label": False}


def test_without_names_classes_are_numbered_and_splits_may_lack_some(tmp_path):
    tree = masked.write_tree(tmp_path / "tree")
    assert prepared(tree).classes == ("0", "1", "2")
    for file in (tree / "annotations" / "validation").iterdir():
        file.write_bytes(masked.png(np.zeros((20, 24), np.uint8)))
    assert prepared(tree, "validation").classes == ("0", "1", "2")


def test_ade20ks_own_names_come_with_its_own_numbers(tmp_path, capsys):
    names = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t1\t1\t1\twall\n2\t0.1\t1\t1\t1\tbuilding, edifice\n"
    records = prepared(masked.write_tree(tmp_path / "tree", objectInfo150=names))
    assert records.classes == ("wall", "building, edifice")
    assert records.masks == MaskRule(reduce_zero_label=True)
    assert "0 is no class" in capsys.readouterr().err
    record = records[0]
    stored = masked.mask(int(record.name.removesuffix(".png"))).astype(int)
    expected = np.where(stored == 0, 255, stored - 1)
    np.testing.assert_array_equal(records.mask(record, (20, 24)), expected)


def test_what_the_values_mean_is_part_of_the_fingerprint(tree, tmp_path):
    prints = {
        prepare(str(tree), str(tmp_path / f"out{number}"), masks=masks)["fingerprint"]
        for number, masks in enumerate((None, "ignore=0", "ignore=1"))
    }
    assert len(prints) == 3


def test_palettes_and_other_lossless_formats_are_read(tree):
    folder = tree / "annotations" / "training"
    palette = Image.fromarray(masked.mask(0)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    palette.putdata(masked.mask(0).reshape(-1))
    palette.save(folder / "0.png")
    Image.fromarray(masked.mask(1)).save(folder / "1.bmp")
    (folder / "1.png").unlink()
    Image.fromarray(masked.mask(2).astype(np.uint16)).save(folder / "2.png")
    records = prepared(tree)
    for record in records.read(range(6)):
        number = int(record.name.removesuffix(".png"))
        np.testing.assert_array_equal(records.mask(record, (20, 24)), masked.mask(number))


# What is wrong with single files is counted and told


@pytest.mark.trial
@pytest.mark.parametrize(
    ("spoilt", "words"),
    [
        (masked.png(masked.mask(0, (10, 24))), "its mask is 24 x 10 px, and the image 24 x 20"),
        (masked.png(masked.painted(masked.mask(0))), r"its mask has colours \(RGB\)"),
        (masked.png(np.full((20, 24), 700, np.uint16)), "the value 700, and 255 is the largest"),
        (b"", "the file is empty"),
        (masked.png(masked.mask(0))[:50], "its mask is damaged"),
    ],
    ids=["size", "colours", "16 bits", "empty", "cut short"],
)
def test_a_bad_mask_leaves_its_image_out(tree, capsys, spoilt, words):
    (tree / "annotations" / "training" / "0.png").write_bytes(spoilt)
    assert len(prepared(tree)) == 5
    manifest = json.loads((tree.parent / "out" / "dataset.json").read_text())
    (skipped,) = manifest["splits"]["train"]["skipped"]
    assert skipped["name"] == "0.png"
    assert re.search(words, skipped["reason"])
    assert "1 of 6 images are left out" in capsys.readouterr().err


@pytest.mark.trial
def test_images_and_masks_without_one_another_are_left_out_and_told(tree, capsys):
    (tree / "annotations" / "training" / "0.png").unlink()
    (tree / "images" / "training" / "1.png").unlink()
    assert len(prepared(tree)) == 4
    told = capsys.readouterr().err
    assert "images without a mask: 1, such as images/training/0.png" in told
    assert "masks without an image: 1, such as annotations/training/1.png" in told


# What is wrong with the set is one line


def spoil(tree, value):
    """Every mask gets a pixel of a value."""
    for file in (tree / "annotations" / "training").iterdir():
        values = np.array(Image.open(file))
        values[0, 0] = value
        file.write_bytes(masked.png(values))


@pytest.mark.trial
@pytest.mark.parametrize("value", [3, 77])
def test_values_of_no_class_are_one_line_that_says_what_to_do(tree, value):
    spoil(tree, value)
    with pytest.raises(
        UserError, match=f"6 of 6 masks .* value {value}, .* 3 classes.*ignore={value}"
    ):
        prepared(tree)
    records = prepared(tree, masks=f"ignore={value}")
    assert records.mask(records[0], (20, 24))[0, 0] == 255


@pytest.mark.trial
def test_an_ignored_class_that_is_named_last_is_no_class(tree):
    assert prepared(tree, masks="ignore=2").classes == ("road", "sky")


@pytest.mark.trial
@pytest.mark.parametrize(
    "text", ["ignore", "ignore=-1", "ignore=256", "zero=1", "reduce_zero_label=1"]
)
def test_options_that_are_none(text):
    with pytest.raises(UserError, match="write ignore=VALUE"):
        parse_masks(text)
    assert parse_masks("ignore=11,reduce_zero_label=true") == MaskRule(11, True)


@pytest.mark.trial
def test_masks_are_asked_for_where_there_are_none(tmp_path, prepared):
    (tmp_path / "cats" / "a").mkdir(parents=True)
    (tmp_path / "cats" / "a" / "0.png").write_bytes(masked.png(masked.painted(masked.mask(0))))
    for source in (str(tmp_path / "cats"), prepared):
        with pytest.raises(UserError, match="has no such folders"):
            prepare(source, str(tmp_path / "out"), masks="ignore=3")


@pytest.mark.trial
def test_splits_of_other_classes_and_smaller_images_are_refused(tree):
    prepared(tree)
    (tree / "classes.txt").write_text("road\ntree\nsky\n")
    with pytest.raises(UserError, match=r"other classes.*classes\.txt"):
        prepared(tree, "validation")
    with pytest.raises(UserError, match="--reencode makes images smaller"):
        prepare(str(tree), str(tree.parent / "o"), reencode="short_side=8,quality=9")


@pytest.mark.trial
def test_annotations_that_are_no_masks_are_classes_as_before(tmp_path):
    """COCO's annotations are JSON, and a class may be called images."""
    for name in ("images", "annotations"):
        (tmp_path / "set" / name).mkdir(parents=True)
    for number in range(3):
        image = masked.png(masked.painted(masked.mask(number)))
        (tmp_path / "set" / "images" / f"{number}.png").write_bytes(image)
        (tmp_path / "set" / "annotations" / f"other{number}.png").write_bytes(image)
    prepare(str(tmp_path / "set"), str(tmp_path / "out"))
    records = open_dataset(tmp_path / "out")
    assert records.classes == ("annotations", "images") and records.masks is None


# Looking at a set


def test_inspect_tells_the_shares_of_the_classes_and_verify_reads_the_masks(tree):
    records = prepared(tree, masks="ignore=2")
    found = inspect(records.path)["splits"]["train"]
    assert found["masks"] == {"ignore": 2, "reduce_zero_label": False}
    masks = np.stack([masked.mask(number) for number in range(6)])
    assert found["images"]["pixels"] == {
        name: round(float((masks == number).sum() / (masks < 2).sum()), 4)
        for number, name in enumerate(("road", "sky"))
    }
    assert found["images"]["pixels_without_class"] == round(float((masks == 2).mean()), 4)
    assert verify(records.path) == {"train": []}
    manifest = tree.parent / "out" / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"ignore": 2', '"ignore": 255'))
    strays = {number for number in range(6) if (masks[number] == 2).any()}
    bad = verify(records.path)["train"]
    assert {int(each.name.removesuffix(".png")) for each in bad} == strays
    assert "value 2, and there are 2 classes" in bad[0].reason


@pytest.mark.trial
@pytest.mark.parametrize("found", [None, [], {}, {"ignore": 300, "reduce_zero_label": False}])
def test_a_manifest_must_say_what_values_mean(tree, found):
    prepared(tree)
    file = tree.parent / "out" / "dataset.json"
    manifest = json.loads(file.read_text())
    manifest["splits"]["train"]["masks"] = found
    file.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"splits\.train\.masks is"):
        open_dataset(tree.parent / "out")
