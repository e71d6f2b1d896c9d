"""Semantic segmentation on frozen patch tokens: a linear head, or the labels of the nearest patches.

Three protocols, each of a suite that publishes numbers on ADE20K:

* ``dinov3``: batch norm and a linear map for each layer, trained on crops (:mod:`segment_head`), tested
  by sliding windows at the size of the masks. DINOv3 (arXiv 2508.10104), its released linear config.
* ``capi-knn`` and ``capi-logreg``: images squeezed to a square, classes of pixels from the nearest
  patches or of patches by logistic regression (:mod:`segment_patches`). CAPI (arXiv 2502.08769), its
  released evaluation.

A causal encoder's patches see a part of the image alone: attention is bidirectional unless asked for.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.data.loader import require_masks
from nepa_jax.evals import miou, results, segment_head, segment_patches
from nepa_jax.evals.subject import Subject


def evaluate(
    subject: Subject,
    preset: str = "dinov3",
    iterations: int | None = None,
    batch_size: int | None = None,
) -> results.Outcome:
    """Segmentation of the test split, at every layer.

    Args:
        subject: the encoder and the images; its image size is the side of windows, or of squeezed images.
        preset: one of the three.
        iterations: of the training of heads, or at most of L-BFGS; None: the protocol's.
        batch_size: crops a step; None: the protocol's.

    Raises:
        UserError: a split has no masks or other classes, or an option is of another protocol.
    """
    check(subject, preset, iterations, batch_size)
    if preset == "dinov3":
        protocol = segment_head.protocol(subject, iterations, batch_size)
        found = segment_head.probe(subject, protocol)
    else:
        protocol = segment_patches.protocol(subject, preset, iterations)
        found = segment_patches.probe(subject, protocol)
    by_layer = [scored(layer, subject.test_records.classes) for layer in found]
    rows = [each for layer in found for each in ({**layer.setting, **_main(layer)}, *layer.rows)]
    told = {"name": f"segment-{preset}", **protocol, "classes": len(subject.test_records.classes)}
    chance = _chance(found[0].counts)
    return results.outcome(told, rows, by_layer, metric="miou", chance=chance)


def check(subject: Subject, preset: str, iterations: int | None, batch_size: int | None) -> None:
    """Raises UserError for what no protocol can do, before anything is encoded."""
    for records in (subject.train_records, subject.test_records):
        require_masks(records)
    if subject.train_records.classes != subject.test_records.classes:
        raise UserError(f"{subject.data.path}: its splits have other classes; prepare them anew")
    if jax.process_count() > 1:
        raise UserError("eval segment runs on one host: start it there without --processes")
    if preset == "dinov3" and subject.train_images is not None:
        raise UserError(
            f"--train-images={subject.train_images}: crops are drawn from all images; leave it out, "
            "or lower --iterations"
        )
    if preset != "dinov3" and batch_size is not None:
        raise UserError(f"--batch-size={batch_size} is for --preset=dinov3; leave it out")
    if preset == "capi-knn" and iterations is not None:
        raise UserError(
            f"--iterations={iterations}: nearest neighbours train nothing; leave it out"
        )


def scored(layer: miou.Counted, classes: Sequence[str]) -> results.Row:
    """The row of a layer: its setting, mean scores, and those of every class by its name."""
    found = miou.scores(layer.counts)
    return {**layer.setting, **_main(layer), "by_class": miou.by_class(found, classes)}


def _main(layer: miou.Counted) -> Mapping[str, Any]:
    found = miou.scores(layer.counts)
    return {key: found[key] for key in ("miou", "pixel_accuracy", "mean_accuracy", "mean_dice")}


def _chance(counts: np.ndarray) -> float:
    """mIoU of always guessing the most frequent class of the test pixels."""
    pixels = counts.sum(axis=1)
    guessed = np.zeros_like(counts)
    guessed[:, pixels.argmax()] = pixels
    return miou.scores(guessed)["miou"]
