"""Segmentation on frozen tokens: what is learned, what is chosen by what, and what is wrong beforehand."""

import json
from dataclasses import replace

import masked
import numpy as np
import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.cli import main
from nepa_jax.data.prepare.split import prepare
from nepa_jax.evals import segment, segment_head, segment_patches
from nepa_jax.evals.segment_patches import Patches
from nepa_jax.evals.subject import subject_of
from nepa_jax.loading import load


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Images whose colours tell the classes: 24 x 20 px, of three classes, the last one ignored in a
    part of them."""
    root = tmp_path_factory.mktemp("painted")
    tree = masked.write_tree(root / "tree", count=24, classes="red\ngreen\nblue\n")
    for split in ("train", "validation"):
        prepare(str(tree), str(root / "set"), split)
    return str(root / "set")


def subject(workdir, data, **choices):
    return subject_of(load(workdir), data, attention="bidirectional", **choices)


def test_linear_heads_learn_what_colours_tell_and_know_nothing_of_one_another(workdir, painted):
    found, one = (
        segment.evaluate(subject(workdir, painted, image_size=16, layer=layer), "dinov3", 40, 8)
        for layer in (None, 1)
    )
    assert [row["layer"] for row in found.by_layer] == [0, 1, 2]
    assert (found.metric, found.protocol["stride"], found.protocol["warmup"]) == ("miou", 11, 2)
    assert all(row["miou"] > max(0.6, 2 * found.chance) for row in found.by_layer)
    assert found.number["layer"] == 2 and found.number["by_class"].keys() == {
        "red",
        "green",
        "blue",
    }
    assert one.number["miou"] == pytest.approx(found.by_layer[1]["miou"], abs=1e-3)


@pytest.mark.parametrize("preset", ["capi-knn", "capi-logreg"])
def test_patches_of_squeezed_images_tell_their_classes(workdir, painted, preset):
    options = {"iterations": 30} if preset == "capi-logreg" else {}
    found = segment.evaluate(subject(workdir, painted, image_size=16, layer=1), preset, **options)
    assert found.number["miou"] > 0.7 > 2 * found.chance
    settings = [row for row in found.rows if "miou" not in row]
    assert len(settings) == 8 and found.protocol["held_out_images"] == 2
    best = max(settings, key=lambda row: row["held_out"])
    chosen = {key: found.number[key] for key in best}
    assert chosen == best


def test_colours_that_tell_nothing_give_chance(workdir, tmp_path):
    """Masks of other images."""
    tree = masked.write_tree(tmp_path / "tree", count=24)
    for index, file in enumerate(sorted((tree / "annotations").rglob("*.png"))):
        file.write_bytes(masked.png(masked.mask(1000 + index)))
    for split in ("train", "validation"):
        prepare(str(tree), str(tmp_path / "set"), split)
    found = segment.evaluate(
        subject(workdir, str(tmp_path / "set"), image_size=16, layer=1), "capi-knn"
    )
    assert found.number["miou"] < 0.45


# The parts


def test_neighbours_are_the_nearest_in_either_distance():
    rng = np.random.default_rng(0)
    queries, bank = (rng.normal(size=(n, 5)).astype(np.float32) for n in (300, 700))
    flat = np.linalg.norm(queries[:, None] - bank, axis=2)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, bank)]
    for distance, far in (("L2", flat), ("cosine", -unit[0] @ unit[1].T)):
        found = segment_patches.neighbours(queries, bank, 10, distance)
        np.testing.assert_array_equal(found, np.argsort(far, axis=1)[:, :10])


def test_neighbours_are_found_in_every_part_of_a_large_bank(monkeypatch):
    monkeypatch.setattr(segment_patches, "BANK", 64)
    bank = np.eye(150, dtype=np.float32)
    found = segment_patches.neighbours(bank[::-1], bank, 1, "cosine")
    np.testing.assert_array_equal(found[:, 0], np.arange(150)[::-1])


def test_each_pixel_takes_the_most_frequent_class_of_its_own_place():
    bank = Patches(
        np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1]], np.float32),
        np.array([[0, 1, 255], [0, 1, 255], [1, 1, 2], [2, 2, 2]], np.uint8),
    )
    queries = Patches(np.array([[1, 0.05]], np.float32), np.array([[0, 1, 2]], np.uint8))
    one, three = segment_patches._knn_counts(bank, queries, "L2", (1, 3), 3)
    np.testing.assert_array_equal(three, np.diag([1, 1, 1]))  # who has no class does not vote
    np.testing.assert_array_equal(one, [[1, 0, 0], [0, 1, 0], [1, 0, 0]])


def test_a_patch_has_its_most_frequent_class_and_none_where_that_is_none():
    pixels = np.array([[0, 2, 2, 255], [255, 255, 255, 1], [1, 0, 1, 0]], np.uint8)
    np.testing.assert_array_equal(segment_patches.most_frequent(pixels, 3), [2, 255, 0])


def test_patches_and_their_pixels_stand_at_the_same_place(workdir, painted):
    mine = subject(workdir, painted, image_size=16)
    mine = replace(mine, data=replace(mine.data, crop="whole"))
    found = mine.train(("none",))
    pixels = segment_patches.patch_pixels(mine.train_records, found, mine)
    assert pixels.shape == (24, 16, 16)
    record = mine.train_records[int(found.index[5])]
    classes = masked.mask(int(record.name.removesuffix(".png")))
    rows = classes[(np.arange(16) * 20 + 10) // 16, 0]  # bands: a column says it all
    np.testing.assert_array_equal(pixels[5].reshape(4, 4, 4, 4)[:, 0, :, 0].reshape(-1), rows)


def test_scores_are_resized_to_a_mask_of_any_size():
    scores = np.zeros((1, 2, 2, 3), np.float32)
    scores[0, :, :, 1], scores[0, 1, :, 2] = 1, 2  # the lower half is of class 2
    example = segment_head.Example(np.zeros((16, 16, 3), np.uint8), np.zeros((30, 22), np.uint8))
    found = segment_head.predicted(scores, example, 16, 11)
    assert found.shape == (30, 22) and (found[:8] == 1).all() and (found[-8:] == 2).all()


# What is wrong is said before anything is encoded


@pytest.mark.trial
@pytest.mark.parametrize(
    ("choices", "options", "words"),
    [
        ({}, dict(preset="capi-knn", batch_size=8), "--batch-size=8 is for --preset=dinov3"),
        ({}, dict(preset="capi-knn", iterations=8), "--iterations=8: nearest neighbours train"),
        (dict(train_images=5), dict(), "--train-images=5: crops are drawn from all"),
        ({}, dict(batch_size=7), "8 devices share it; try 8"),
    ],
)
def test_options_of_other_protocols(workdir, painted, choices, options, words):
    with pytest.raises(UserError, match=words):
        segment.evaluate(subject(workdir, painted, image_size=16, **choices), **options)


@pytest.mark.trial
def test_sets_without_masks_and_of_one_split(workdir, dataset, painted):
    mine = subject(workdir, dataset, splits=("train", "train"), image_size=16)
    with pytest.raises(UserError, match="split 'train', has no masks: prepare a folder"):
        segment.evaluate(mine)
    with pytest.raises(UserError, match="no split 'test': choose one of train, validation"):
        subject(workdir, painted, splits=("train", "test"))


@pytest.mark.trial
def test_one_image_is_too_few_to_choose_by(workdir, painted):
    with pytest.raises(UserError, match=r"1 training images have .*; give more"):
        segment.evaluate(subject(workdir, painted, image_size=16, train_images=1), "capi-knn")


@pytest.mark.trial
def test_a_size_that_the_encoder_cannot_take(workdir, painted):
    with pytest.raises(
        UserError, match="18 x 18 px: the sides must be multiples of the patch side, 4"
    ):
        subject(workdir, painted, image_size=18)


def test_the_verb_writes_protocol_and_scores_of_every_class(workdir, painted, tmp_path, capsys):
    out = tmp_path / "out"
    main(
        ["eval", "segment", workdir, f"--data={painted}", "--preset=capi-knn", "--image-size=16",
         "--layer=1", f"--out={out}"]
    )  # fmt: skip
    found = json.loads((out / "segment-capi-knn.json").read_text())
    assert found["attention"] == "bidirectional"  # which NEPA was not trained with
    assert found["number"]["by_class"].keys() == {"red", "green", "blue"}
    assert found["protocol"]["train_images"] == 24 and found["protocol"]["side"] == 16
    assert found["untrained"]["layer"] == 1 and 0 < found["chance"] < 0.4
    (line,) = (out / "results.csv").read_text().splitlines()[1:]
    assert line.startswith("segment-capi-knn,") and "by_class" not in line
    assert "chance is" in capsys.readouterr().out
