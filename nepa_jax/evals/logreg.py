"""Logistic regression on frozen features, its penalty chosen on a held-out part of the training images.

Every C of a grid is fitted on the rest, from the strongest penalty to the weakest, each from the
solution before; the C that is best on the held-out images is fitted again on all of them. The test
split only sees the end.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import progress
from nepa_jax.base.threads import ordered_map
from nepa_jax.evals import results, subsets
from nepa_jax.evals.frozen import Frozen
from nepa_jax.evals.subject import Subject


@dataclass(frozen=True)
class Protocol:
    """All that decides the number. The objective is C Σ cross-entropy + ½ |W|², in float64."""

    features: str  # "standardised": each dimension to mean 0, variance 1; or "L2-normalised"
    C: tuple[float, ...]
    iterations: int  # of L-BFGS, at most
    tolerance: float  # of the largest entry of the gradient
    solver: str = "L-BFGS, float64"
    held_out: float = subsets.HELD_OUT  # of the training images, stratified
    chosen: str = "C by top1 on the held-out part, then fitted on all training images"


CORES = os.cpu_count() or 1
GRID = tuple(10.0 ** np.linspace(-6, 5, 45))  # DINOv3's
PROTOCOLS = {
    # Every fourth of that grid, and features as MAE's linear probe norms them: those of middle layers
    # have dimensions of very different scales.
    "short": Protocol("standardised", GRID[::4], iterations=200, tolerance=1e-5),
    # DINOv3 (arXiv 2508.10104) and its released evaluation.
    "dinov3": Protocol("L2-normalised", GRID, iterations=1000, tolerance=1e-12),
}


def evaluate(subject: Subject, protocol: str = "short") -> results.Outcome:
    """Logistic regression at every layer."""
    subject.require_labels()
    return probe(subject.train(), subject.test(), PROTOCOLS[protocol])


def probe(train: Frozen, test: Frozen, protocol: Protocol) -> results.Outcome:
    """Fits every layer of every pooling, and takes the layer by the held-out images too."""

    def fit(place: tuple[str, int]) -> tuple[results.Row, list[results.Row]]:
        pool, i = place
        parts = train.features[pool][i], train.labels, test.features[pool][i], test.labels
        number, grid = fitted(*parts, protocol)
        at = {"layer": train.layers[i], "pool": pool}
        return at | number, [at | row for row in grid]

    places = [(pool, i) for pool in train.features for i in range(len(train.layers))]
    with side_by_side():
        found = list(progress(ordered_map(fit, places, CORES), len(places), "logistic regression"))
    by_layer = [number for number, _ in found]
    rows = [row for number, grid in found for row in (number, *grid)]
    told = asdict(protocol) | {"train_images": len(train), "test_images": len(test)}
    chance = results.chance_of(train.labels, test.labels)
    return results.outcome(told, rows, by_layer, chance=chance)


@contextmanager
def side_by_side() -> Iterator[None]:
    """For fits in several threads: each has one core. A product shared among cores is no faster where
    it is small, and where they are busy twenty times as slow. Stopping at the limit, which is part of
    the protocol, is not told."""
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def fitted(
    x: np.ndarray,
    labels: np.ndarray,
    other: np.ndarray,
    other_labels: np.ndarray,
    protocol: Protocol,
) -> tuple[results.Row, list[results.Row]]:
    """The number, and the grid that it was chosen from.

    Args:
        x: float32 [M, D], with labels int [M] of two classes or more.
        other: float32 [n, D], with labels int [n].
        protocol: one of ``PROTOCOLS``.

    Returns:
        Rows of ``C``, ``iterations``, ``fitted_images``, ``top1`` and ``top5`` on ``other``, and
        ``held_out``; without a held-out image, as of one image a class, C is 1 and unchosen.

    Raises:
        UserError: all images are of one class.
    """
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"all {len(labels)} training images are of one class: give two classes or more"
        )
    kept, held = subsets.hold_out(labels, protocol.held_out)
    grid = []
    if len(held):
        apart = np.concatenate([x[held], other])
        for row, ranked in path(x[kept], labels[kept], apart, protocol.C, protocol):
            held_out = share(ranked[: len(held), 0] == labels[held])
            grid.append(row | accuracy(ranked[len(held) :], other_labels) | {"held_out": held_out})
    best = max(grid, key=lambda row: row["held_out"], default={"C": 1.0})
    ((row, ranked),) = path(x, labels, other, [best["C"]], protocol)
    chosen = {"held_out": best["held_out"]} if grid else {}
    return row | accuracy(ranked, other_labels) | chosen, grid


def path(
    x: np.ndarray, labels: np.ndarray, other: np.ndarray, cs: Sequence[float], protocol: Protocol
) -> Iterator[tuple[results.Row, np.ndarray]]:
    """Of each C what was fitted, and the classes of ``other`` by score, best first: int [n, 5]."""
    x, other = normed(x, other, protocol.features)
    classifier = LogisticRegression(
        max_iter=protocol.iterations, tol=protocol.tolerance, warm_start=True
    )
    for c in cs:
        classifier.set_params(C=c)
        classifier.fit(x, labels)
        scores = classifier.decision_function(other)
        if scores.ndim == 1:  # of two classes, the second's
            scores = np.stack([-scores, scores], axis=1)
        ranked = classifier.classes_[np.argsort(-scores, axis=1, kind="stable")[:, :5]]
        iterations = int(classifier.n_iter_.max())
        yield {"C": float(c), "iterations": iterations, "fitted_images": len(x)}, ranked


def normed(x: np.ndarray, other: np.ndarray, how: str) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, by the statistics of the first or each row by itself."""
    x, other = np.asarray(x, np.float64), np.asarray(other, np.float64)
    if how == "standardised":
        mean, std = x.mean(axis=0), x.std(axis=0)
        std[std <= 1e-12 * np.abs(mean)] = 1.0  # constant
        return (x - mean) / std, (other - mean) / std
    lengths = (np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, other))
    return tuple(
        rows / np.maximum(length, 1e-12) for rows, length in zip((x, other), lengths, strict=True)
    )


def accuracy(ranked: np.ndarray, labels: np.ndarray) -> results.Row:
    """``top1`` and ``top5`` of classes int [n, 5], best first."""
    hits = ranked == labels[:, None]
    return {"top1": share(hits[:, 0]), "top5": share(hits.any(axis=1))}


def share(hits: np.ndarray) -> float:
    return float(hits.mean())
