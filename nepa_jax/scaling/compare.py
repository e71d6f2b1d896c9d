"""Several objectives on a downstream error at equal FLOPs; their losses are of different things."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.scaling.frontier import best_of_budgets
from nepa_jax.scaling.points import Points
from nepa_jax.scaling.surface import fit_power

LEAST_BUDGETS = 3


def compare(by_objective: Mapping[str, Points], resampled: int, seed: int) -> dict[str, Any]:
    """The error of each objective's best runs as c + a C^-g, at budgets that all of them spent.

    Args:
        by_objective: the runs of each, with their errors.
        resampled: how often runs are drawn anew for the intervals, 95 %.
        seed: draws them.

    Raises:
        UserError: runs without errors, too few budgets, or none in common.
    """
    for name, points in by_objective.items():
        _require_errors(name, points)
    low = max(points.flops.min() for points in by_objective.values())
    high = min(points.flops.max() for points in by_objective.values())
    if low >= high:
        raise UserError(
            f"no FLOPs that all of {', '.join(by_objective)} spent (the least of one, {low:.3g}, is above "
            f"the most of another, {high:.3g}); nothing is compared outside of what was trained"
        )
    flops, rng = np.geomspace(low, high, 5), np.random.default_rng(seed)
    curves = {name: _error_at(points, flops) for name, points in by_objective.items()}
    many = {name: _resampled(p, flops, resampled, rng) for name, p in by_objective.items()}
    return {
        "flops": flops.tolist(),
        "error": {name: curve.tolist() for name, curve in curves.items()},
        "interval": {n: np.nanpercentile(m, [2.5, 97.5], axis=0).T.tolist() for n, m in many.items()},
        "best": [min(curves, key=lambda name: curves[name][i]) for i in range(len(flops))],
    }  # fmt: skip


def _require_errors(name: str, points: Points) -> None:
    if not np.isfinite(points.error).all():
        missing = points.name[~np.isfinite(points.error)][0]
        raise UserError(
            f"{name or 'all'}, {missing}: has no downstream error; name its column with --error=COLUMN"
        )
    if len(best_of_budgets(points.flops, points.error)) < LEAST_BUDGETS:
        raise UserError(f"{name}: fewer than {LEAST_BUDGETS} budgets to compare errors on")


def _error_at(points: Points, flops: np.ndarray) -> np.ndarray:
    best = best_of_budgets(points.flops, points.error)
    c, a, g = fit_power(points.flops[best], points.error[best])
    return c + a * flops**-g


def _resampled(
    points: Points, flops: np.ndarray, count: int, rng: np.random.Generator
) -> np.ndarray:
    """float64 [R, c]; NaN of drawings with fewer than three budgets."""
    found = np.full((count, len(flops)), np.nan)
    for row in found:
        drawn = points.take(rng.integers(len(points), size=len(points)))
        if len(best_of_budgets(drawn.flops, drawn.error)) >= LEAST_BUDGETS:
            row[:] = _error_at(drawn, flops)
    return found
