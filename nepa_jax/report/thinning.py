"""Curves short enough to draw, of any length: extremes stay, and what is drawn says of how much."""

from itertools import pairwise
from typing import Any

import numpy as np

MOST_LOST = 200  # marks for steps without a finite number


def thinned(
    steps: np.ndarray, values: np.ndarray, lost: np.ndarray, buckets: int
) -> dict[str, Any]:
    """A curve as JSON values.

    More than twice as many points as there are buckets are thinned: of each bucket, an equal share of
    the points in order, the least and the greatest stay where they are, and its mean is told beside
    them, for smoothing. The first and the last point stay too.

    Args:
        steps: increasing, int [n].
        values: float [n]; those that are NaN are left out.
        lost: steps whose value was not finite, int [any].
        buckets: how many at most.

    Returns:
        ``x``, ``y``: points that were logged, two to a bucket. ``count``: how many were logged.
        ``lost``: steps, and ``lost_count``. Thinned ones also ``mean_x``, ``mean_y``: of each bucket.
    """
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    marks = np.unique(np.linspace(0, len(lost) - 1, MOST_LOST).astype(int)) if len(lost) else []
    told = {"count": len(steps), "lost": lost[marks].tolist(), "lost_count": len(lost)}
    if len(steps) <= 2 * buckets:
        return {"x": steps.tolist(), "y": short(values), **told}
    edges = np.linspace(0, len(steps), buckets + 1).astype(int)
    kept = {0, len(steps) - 1}
    for low, high in pairwise(edges):
        part = values[low:high]
        kept |= {low + int(part.argmin()), low + int(part.argmax())}
    places = sorted(kept)
    sizes = np.diff(edges)
    return {
        "x": steps[places].tolist(),
        "y": short(values[places]),
        "mean_x": short(np.add.reduceat(steps.astype(float), edges[:-1]) / sizes),
        "mean_y": short(np.add.reduceat(values, edges[:-1]) / sizes),
        **told,
    }


def short(values: np.ndarray) -> list[float]:
    """Seven significant digits: what float32 has."""
    return [float(f"{value:.7g}") for value in values.tolist()]
