"""Exact scores of a segmentation: counts of pixels in int64 over the whole set, then ratios per class.

As mmsegmentation 1.2.2 (IoUMetric): a class that neither predictions nor masks have is NaN, and no part
of a mean; one that only either of them has is 0. Pixels without a class count nowhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nepa_jax.data.masks import IGNORED


@dataclass(frozen=True)
class Counted:
    """The pixels of the test split at one layer, and how they were predicted."""

    counts: np.ndarray  # int64 [K, K], as :func:`confusion`
    setting: dict[str, Any]  # ``layer``, what was chosen, and ``held_out`` where it was by that
    rows: Sequence[dict[str, Any]] = ()  # all settings, with their ``held_out`` alone


def confusion(mask: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels by their class in the mask and the predicted one, int64 [K, K].

    Args:
        mask: uint8, any shape; ``IGNORED`` where a pixel has no class.
        predicted: integers of the same shape, 0 … K - 1.
        num_classes: K.
    """
    known = mask != IGNORED
    pairs = mask[known].astype(np.int64) * num_classes + predicted[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def scores(counts: np.ndarray) -> dict[str, Any]:
    """What a confusion [K, K] comes to, as fractions in float64.

    Per class, each [K]: ``iou``, ``accuracy`` (of the pixels of the class those that are found: recall),
    ``precision``, ``dice``, ``f_score``. Of all: ``miou``, ``mean_accuracy``, ``mean_dice``, means over
    the classes that are there; ``pixel_accuracy``.
    """
    found = np.diag(counts).astype(np.float64)
    masks, predicted = counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN: there is no such class
        iou = found / (masks + predicted - found)
        recall, precision = found / masks, found / predicted
        dice = 2 * found / (masks + predicted)
        f_score = 2 * precision * recall / (precision + recall)
        pixel_accuracy = float(found.sum() / masks.sum())
    return {
        "miou": _mean(iou),
        "pixel_accuracy": pixel_accuracy,
        "mean_accuracy": _mean(recall),
        "mean_dice": _mean(dice),
        "iou": iou,
        "accuracy": recall,
        "precision": precision,
        "dice": dice,
        "f_score": f_score,
    }


def by_class(
    found: Mapping[str, Any], classes: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """The scores of each class by its name, as JSON has them: None for NaN."""
    keys = ("iou", "accuracy", "precision", "dice", "f_score")
    return {
        name: {key: None if np.isnan(found[key][k]) else float(found[key][k]) for key in keys}
        for k, name in enumerate(classes)
    }


def _mean(values: np.ndarray) -> float:
    """Of those that are numbers; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
