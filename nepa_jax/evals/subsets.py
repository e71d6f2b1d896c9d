"""Parts of a labelled set: nested label budgets, and what is held out of it to choose by."""

import numpy as np

from nepa_jax.data.draws import stable_hash

BUDGETS = (0.01, 0.05, 0.1, 0.25, 1.0)  # of the training images
HELD_OUT = 0.1
MOST_HELD_OUT = 10_000  # images


def budget(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """The images of a label budget, int64 in the order of the set.

    Of each class the rounded fraction, at least one image. A pure function of the arguments, and
    nested: a larger fraction of the same labels and seed has the images of every smaller one.

    Args:
        labels: int [n], in the order of the set.
        fraction: in (0, 1].
        seed: which images.
    """
    return np.sort(np.concatenate([
        members[: max(1, round(fraction * len(members)))] for members in _by_class(labels, seed)
    ]))  # fmt: skip


def hold_out(
    labels: np.ndarray, fraction: float = HELD_OUT, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The images that are kept and those that are held out, int64 each, in the order of the set.

    Of each class the rounded fraction is held out, at least one image and never its last; all in
    all about ``MOST_HELD_OUT`` at most.
    """
    fraction = min(fraction, MOST_HELD_OUT / len(labels))
    counts = [
        (members, min(max(1, round(fraction * len(members))), len(members) - 1))
        for members in _by_class(labels, seed)
    ]
    held = np.sort(np.concatenate([members[:count] for members, count in counts]))
    return np.setdiff1d(np.arange(len(labels)), held), held


def _by_class(labels: np.ndarray, seed: int) -> list[np.ndarray]:
    """The images of every class there is, each in an order that the seed draws."""
    draws = np.random.Philox(key=stable_hash("subset", seed)).random_raw(len(labels))
    shuffled = np.argsort(draws, kind="stable")
    return [shuffled[labels[shuffled] == label] for label in np.unique(labels)]
