"""Segmentation scores are mmsegmentation's, exactly; windows are, too."""

from pathlib import Path

import numpy as np
import pytest

from nepa_jax.evals.miou import by_class, confusion, scores
from nepa_jax.evals.windows import cut, joined, places_of

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden2" / "segmentation.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def test_areas_are_exact_and_scores_are_theirs(golden):
    labels, predicted = golden["miou/input.labels"], golden["miou/input.prediction"]
    counts = sum(confusion(m, p, 7) for m, p in zip(labels, predicted, strict=True))
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, golden["miou/out.confusion"])
    found = scores(counts)
    names = dict(
        iou="IoU", accuracy="Acc", precision="Precision", dice="Dice", f_score="Fscore",
        miou="mIoU", pixel_accuracy="aAcc", mean_accuracy="mAcc", mean_dice="mDice",
    )  # fmt: skip
    for ours, theirs in names.items():
        wanted = golden[f"miou/out.{theirs}"]
        scale = 100 if np.nanmax(wanted) > 1.5 else 1
        np.testing.assert_allclose(found[ours], wanted / scale, atol=1e-6, err_msg=ours)


def test_a_class_that_is_nowhere_is_no_part_of_a_mean_and_one_in_either_is_0():
    found = scores(confusion(np.array([0, 0, 1, 255]), np.array([0, 0, 3, 2]), 4))
    np.testing.assert_array_equal(found["iou"], [1, 0, np.nan, 0])
    assert found["miou"] == pytest.approx(1 / 3) and found["pixel_accuracy"] == pytest.approx(2 / 3)
    assert by_class(found, ("a", "b", "c", "d"))["c"]["iou"] is None


def test_counts_do_not_lose_pixels_as_float32_would():
    counts = np.full((2, 2), 2**24, np.int64) * np.eye(2, dtype=np.int64) + [[0, 1], [0, 0]]
    assert scores(counts)["iou"][0] == 2**24 / (2**24 + 1)


def test_sliding_windows_are_theirs(golden):
    image = golden["slide/input.x"][0].transpose(1, 2, 0)
    boxes = [(t, t + 12, left, left + 12) for t, left in places_of((20, 27), (12, 12), 8)]
    theirs = {tuple(box) for box in golden["slide/out.boxes"].tolist()}
    assert {*boxes} == theirs and len(boxes) == len(golden["slide/out.boxes"])
    weight, bias = golden["slide/param.weight"], golden["slide/param.bias_map"].transpose(1, 2, 0)
    found = joined(cut(image, (12, 12), 8) @ weight.T + bias, (20, 27), 8)
    np.testing.assert_allclose(found, golden["slide/out.logits"][0].transpose(1, 2, 0), atol=2e-6)


@pytest.mark.parametrize("size", [(12, 12), (13, 40), (24, 12), (500, 333)])
def test_windows_are_inside_and_cover_every_pixel(size):
    seen = np.zeros(size, int)
    for top, left in places_of(size, (12, 12), 8):
        assert 0 <= top <= size[0] - 12 and 0 <= left <= size[1] - 12
        seen[top : top + 12, left : left + 12] += 1
    assert seen.min() >= 1
