"""CAPI's segmentation protocols: every patch of a squeezed image is an example, its pixels' classes its label.

Darcet et al. 2025 (arXiv 2502.08769), released evaluation: images and masks squeezed to 224 px, tokens
standardised, settings chosen by mIoU on a tenth of the training images and then fitted on all of them.
kNN: the most frequent class among the neighbours, for each pixel of the patch by itself. Logistic
regression: L-BFGS on the most frequent class of each patch.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import progress
from nepa_jax.base.threads import ordered_map
from nepa_jax.data.masks import IGNORED
from nepa_jax.data.records import RecordSet
from nepa_jax.data.resize import NEAREST, resize_exact
from nepa_jax.evals import miou, subsets
from nepa_jax.evals.frozen import Frozen
from nepa_jax.evals.knn import Pair, best_of_both
from nepa_jax.evals.subject import Subject

NEIGHBORS = (1, 3, 10, 30)
DISTANCES = ("cosine", "L2")
PENALTIES = tuple(10.0 ** np.linspace(-6, 5, 8))  # C
ITERATIONS, TOLERANCE = 1000, 1e-12

QUERIES, BANK = 256, 32768  # patches at a time
THREADS = 8


class Patches(NamedTuple):
    """Patches of some images at one layer: M of them."""

    tokens: np.ndarray  # float32 [M, D]
    pixels: np.ndarray  # uint8 [M, P²], classes; ``IGNORED`` for none

    def of(self, chosen: np.ndarray) -> "Patches":
        return Patches(self.tokens[chosen], self.pixels[chosen])


@dataclass(frozen=True)
class Split:
    """The pixels' classes of a split's patches, uint8 [n, N, P²], beside its features."""

    frozen: Frozen
    pixels: np.ndarray

    def patches(self, place: int, images: np.ndarray | None = None) -> Patches:
        """Of the layer at a place, of some images or all."""
        tokens = np.asarray(self.frozen.tokens[place])
        chosen = slice(None) if images is None else images
        tokens, pixels = tokens[chosen], self.pixels[chosen]
        return Patches(tokens.reshape(-1, tokens.shape[-1]), pixels.reshape(-1, pixels.shape[-1]))


def protocol(subject: Subject, preset: str, iterations: int | None) -> dict[str, Any]:
    """All that decides the numbers."""
    common = {
        "preset": preset,
        "images": "squeezed to a square",
        "side": subject.data.image_size[0],
        "features": "patch tokens, standardised",
        "held_out": f"{subsets.HELD_OUT} of the training images; settings by mIoU on them",
        "scores": "of pixels at that size",
    }
    if preset == "capi-knn":
        return common | {"head": "kNN", "k": NEIGHBORS, "distance": DISTANCES}
    return common | {
        "head": "logistic regression", "solver": "L-BFGS", "C": PENALTIES,
        "iterations": iterations or ITERATIONS, "tolerance": TOLERANCE,
    }  # fmt: skip


def probe(subject: Subject, protocol: dict[str, Any]) -> list[miou.Counted]:
    """Every layer by one of the protocols; adds the counts of images to it."""
    squeezed = replace(subject, data=replace(subject.data, crop="whole"))
    train, test = (
        Split(found, patch_pixels(records, found, squeezed))
        for found, records in (
            (squeezed.train(("none",)), subject.train_records),
            (squeezed.test(("none",)), subject.test_records),
        )
    )
    kept, held = subsets.hold_out(np.zeros(len(train.frozen), np.int32))
    _check_enough(train, kept, held, len(subject.train_records.classes))
    protocol |= {
        "train_images": len(train.frozen), "test_images": len(test.frozen),
        "held_out_images": len(held), "patches": list(train.frozen.grid),
    }  # fmt: skip
    num_classes = len(subject.train_records.classes)
    method = (
        _knn if protocol["head"] == "kNN" else partial(_logreg, iterations=protocol["iterations"])
    )
    found = []
    for place, layer in enumerate(train.frozen.layers):
        parts = [train.patches(place, kept), train.patches(place, held), test.patches(place)]
        fitted = method(*_standardized(parts), num_classes)
        at, rows = {"layer": layer}, fitted.rows
        found.append(miou.Counted(fitted.counts, at | fitted.setting, [at | row for row in rows]))
    return found


def _check_enough(train: Split, kept: np.ndarray, held: np.ndarray, num_classes: int) -> None:
    """Raises UserError if there is nothing to choose by, or too little to learn from."""
    labels = most_frequent(train.pixels[kept].reshape(-1, train.pixels.shape[-1]), num_classes)
    labels = labels[labels != IGNORED]
    if not len(held) or len(labels) < max(NEIGHBORS) or len(np.unique(labels)) < 2:
        raise UserError(
            f"{len(train.frozen)} training images have {len(labels):,} patches with a class, of "
            f"{len(np.unique(labels))} classes: these protocols want {max(NEIGHBORS)} patches of two "
            "classes, and an image to choose by; give more"
        )


def patch_pixels(records: RecordSet, found: Frozen, subject: Subject) -> np.ndarray:
    """Classes of the pixels of every patch of the images that have features, uint8 [n, N, P²]."""
    size = subject.data.image_size
    rows, columns = found.grid

    def of_image(index: int) -> np.ndarray:
        mask = records.mask(records[int(index)])[..., None]
        mask = resize_exact(mask, size[::-1], NEAREST)
        tiles = mask.reshape(rows, size[0] // rows, columns, size[1] // columns).swapaxes(1, 2)
        return tiles.reshape(rows * columns, -1)

    masks = ordered_map(of_image, found.index, THREADS)
    return np.stack(list(progress(masks, len(found.index), f"masks of {records.split}")))


def most_frequent(pixels: np.ndarray, num_classes: int) -> np.ndarray:
    """The most frequent value of each patch [M, P²], the smallest of several: int [M]; ``IGNORED``
    where most pixels have no class."""
    values = np.minimum(pixels, num_classes).astype(np.int64)  # IGNORED becomes the last
    flat = np.arange(len(values))[:, None] * (num_classes + 1) + values
    counts = np.bincount(flat.reshape(-1), minlength=len(values) * (num_classes + 1))
    labels = counts.reshape(-1, num_classes + 1).argmax(axis=1)
    return np.where(labels == num_classes, IGNORED, labels)


def _standardized(parts: Sequence[Patches]) -> Iterator[Patches]:
    """By the mean and deviation of the first."""
    first = parts[0].tokens
    mean, std = first.mean(axis=0, dtype=np.float64), first.std(axis=0, dtype=np.float64)
    scale = np.where(std > 0, std, 1.0)
    for part in parts:
        yield Patches(((part.tokens - mean) / scale).astype(np.float32), part.pixels)


def _labelled(patches: Patches, num_classes: int) -> Patches:
    """Those most of whose pixels have a class."""
    return patches.of(most_frequent(patches.pixels, num_classes) != IGNORED)


def _both(kept: Patches, held: Patches) -> Patches:
    return Patches(*(np.concatenate(pair) for pair in zip(kept, held, strict=True)))


def _counts(predicted: np.ndarray, pixels: np.ndarray, num_classes: int) -> np.ndarray:
    """The confusion of the pixels of patches; predictions [M, P²], or [M, 1] for all of a patch."""
    return miou.confusion(pixels, np.broadcast_to(predicted, pixels.shape), num_classes)


# Nearest neighbours


def _knn(kept: Patches, held: Patches, test: Patches, num_classes: int) -> miou.Counted:
    rows = []
    for distance in DISTANCES:
        counts = _knn_counts(_labelled(kept, num_classes), held, distance, NEIGHBORS, num_classes)
        rows += [
            {"k": k, "distance": distance, "held_out": miou.scores(each)["miou"]}
            for k, each in zip(NEIGHBORS, counts, strict=True)
        ]
    best = max(rows, key=lambda row: row["held_out"])
    bank = _labelled(_both(kept, held), num_classes)
    (counts,) = _knn_counts(bank, test, best["distance"], (best["k"],), num_classes)
    return miou.Counted(counts, best, rows)


def _knn_counts(
    bank: Patches, queries: Patches, distance: str, ks: tuple[int, ...], num_classes: int
) -> list[np.ndarray]:
    """The confusion [K, K] of each number of neighbours."""
    nearest = neighbours(queries.tokens, bank.tokens, max(ks), distance)
    counts = [np.zeros((num_classes, num_classes), np.int64) for _ in ks]
    pixels = jnp.asarray(bank.pixels)
    for start in range(0, len(nearest), QUERIES):
        part = nearest[start : start + QUERIES]
        padded = np.pad(part, ((0, QUERIES - len(part)), (0, 0)))
        predicted = np.asarray(_voted(pixels, jnp.asarray(padded), ks, num_classes))
        masks = queries.pixels[start : start + QUERIES]
        for total, each in zip(counts, predicted, strict=True):
            total += _counts(each[: len(part)], masks, num_classes)
    return counts


@partial(jax.jit, static_argnames=("ks", "num_classes"))
def _voted(
    pixels: jax.Array, nearest: jax.Array, ks: tuple[int, ...], num_classes: int
) -> jax.Array:
    """The most frequent class of each pixel among the k nearest patches, the smallest of several:
    uint8 [ks, Q, P²]. Pixels without a class do not vote."""
    classes = jnp.arange(num_classes, dtype=jnp.uint8)
    votes = jnp.zeros((*nearest.shape[:1], pixels.shape[1], num_classes), jnp.int16)
    found, start = [], 0
    for k in ks:

        def add(votes: jax.Array, which: jax.Array) -> tuple[jax.Array, None]:
            return votes + (pixels[which][..., None] == classes), None

        votes, _ = jax.lax.scan(add, votes, nearest[:, start:k].T)
        found.append(jnp.argmax(votes, axis=-1).astype(jnp.uint8))
        start = k
    return jnp.stack(found)


def neighbours(queries: np.ndarray, bank: np.ndarray, k: int, distance: str) -> np.ndarray:
    """The k nearest of the bank, nearest first: int32 [n, k].

    Args:
        queries: float32 [n, D].
        bank: float32 [M, D].
        k: at most M.
        distance: cosine or L2.
    """
    queries, bank = (_as_products(x, distance, of_bank) for x, of_bank in ((queries, 0), (bank, 1)))
    size = -(-min(BANK, len(bank)) // 32) * 32
    best = [
        np.full((len(queries), k), fill, kind)
        for fill, kind in ((-np.inf, np.float32), (0, np.int32))
    ]
    for first in range(0, len(bank), size):
        part = bank[first : first + size]
        tile, count = jnp.asarray(np.pad(part, ((0, size - len(part)), (0, 0)))), len(part)
        for start in range(0, len(queries), QUERIES):
            rows = slice(start, min(start + QUERIES, len(queries)))
            fill = ((0, QUERIES - (rows.stop - start)), (0, 0))
            vectors, *before = (np.pad(each[rows], fill) for each in (queries, *best))
            nearest = _nearer(vectors, tuple(before), tile, count, first)
            for whole, new in zip(best, nearest, strict=True):
                whole[rows] = np.asarray(new)[: rows.stop - start]
    return best[1]


def _as_products(x: np.ndarray, distance: str, of_bank: int) -> np.ndarray:
    """Vectors whose products grow as their distances fall: for L2, q·b - |b|²/2."""
    if distance == "cosine":
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    more = -0.5 * np.square(x).sum(axis=1, keepdims=True) if of_bank else np.ones((len(x), 1))
    return np.concatenate([x, more], axis=1).astype(np.float32)


@jax.jit
def _nearer(queries: jax.Array, best: Pair, bank: jax.Array, count: int, first: int) -> Pair:
    """The best of before and of a part of the bank, whose rows from ``count`` on are none."""
    products = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
    places = jnp.arange(len(bank), dtype=jnp.int32)
    return best_of_both(best, jnp.where(places < count, products, -jnp.inf), first + places)


# Logistic regression


def _logreg(
    kept: Patches, held: Patches, test: Patches, num_classes: int, iterations: int
) -> miou.Counted:
    rows = []
    for penalty in PENALTIES:
        predicted = _fitted(kept, penalty, iterations, num_classes).predict(held.tokens)
        counts = _counts(predicted[:, None], held.pixels, num_classes)
        rows.append({"C": float(penalty), "held_out": miou.scores(counts)["miou"]})
    best = max(rows, key=lambda row: row["held_out"])
    predicted = _fitted(_both(kept, held), best["C"], iterations, num_classes).predict(test.tokens)
    return miou.Counted(_counts(predicted[:, None], test.pixels, num_classes), best, rows)


def _fitted(
    patches: Patches, penalty: float, iterations: int, num_classes: int
) -> LogisticRegression:
    patches = _labelled(patches, num_classes)
    labels = most_frequent(patches.pixels, num_classes)
    classifier = LogisticRegression(C=penalty, max_iter=iterations, tol=TOLERANCE)
    with warnings.catch_warnings():  # stopping at the limit is part of the protocol
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(patches.tokens.astype(np.float64), labels)
