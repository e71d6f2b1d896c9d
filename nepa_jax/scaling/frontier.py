"""What is best at each budget: the loss as a function of compute alone, and IsoFLOP parabolas.

Parabolas are a picture. Their minima are off the true ones even without noise, where alpha and beta
differ, since the curve of a budget is no parabola; how far, is computed here from the fitted law on the
very sizes that were trained.
"""

from dataclasses import dataclass

import numpy as np

from nepa_jax.scaling.law import Law, loss, optimum
from nepa_jax.scaling.points import Points, budgets_of
from nepa_jax.scaling.surface import fit_power

LEAST_SIZES = 4  # of a budget, for a parabola


@dataclass(frozen=True)
class Parabola:
    """Of one budget: loss = c0 + c1 x + c2 x^2 of x = log N."""

    flops: float  # the middle of its runs'
    coefficients: tuple[float, float, float]
    parameters: float | None  # where it is lowest; None: at the edge
    flag: str  # why there is none
    bias: float | None  # of that place, relative, on the law's own losses without noise


def best_of_budgets(flops: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Which runs are the lowest of their budget: int [budgets]."""
    groups = budgets_of(flops)
    at = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    return np.array([runs[value[runs].argmin()] for runs in at])


def law_of_compute(points: Points) -> dict[str, float]:
    """L(C) = c + a C^-g through the best run of each budget."""
    best = best_of_budgets(points.flops, points.loss)
    c, a, g = fit_power(points.flops[best], points.loss[best])
    return {"c": float(c), "a": float(a), "g": float(g), "budgets": len(best)}


def parabolas(points: Points, law: Law, cost: float) -> list[Parabola]:
    """Of every budget with enough sizes, in order.

    Args:
        points: that are fitted.
        law: the fitted one, for the bias.
        cost: FLOPs for a parameter and a sample.
    """
    groups, found = budgets_of(points.flops), []
    for group in np.unique(groups):
        runs = points.take(groups == group)
        if len(np.unique(runs.parameters)) >= LEAST_SIZES:
            found.append(_parabola(runs, law, cost))
    return found


def _parabola(runs: Points, law: Law, cost: float) -> Parabola:
    flops = float(np.exp(np.log(runs.flops).mean()))
    coefficients, lowest = _lowest(runs.parameters, runs.loss)
    sizes = np.unique(runs.parameters)
    flag = ""
    if lowest is None:
        flag = "opens downwards"
    elif not sizes[1] <= lowest <= sizes[-2]:
        flag, lowest = "the optimum is at the grid's edge", None
    bias = None
    if lowest is not None:
        clean = loss(law, runs.parameters, flops / cost / runs.parameters)
        found, true = _lowest(runs.parameters, clean)[1], optimum(law, np.array([flops]), cost)
        bias = None if found is None else float(found / true.parameters[0] - 1)
    return Parabola(flops, coefficients, lowest, flag, bias)


def _lowest(
    parameters: np.ndarray, losses: np.ndarray
) -> tuple[tuple[float, float, float], float | None]:
    """The coefficients, and where it is lowest; None if it opens downwards."""
    x = np.log(parameters)
    middle = x.mean()
    c2, c1, c0 = np.polyfit(x - middle, losses, 2)
    whole = (c0 - c1 * middle + c2 * middle**2, c1 - 2 * c2 * middle, c2)
    lowest = float(np.exp(middle - c1 / (2 * c2))) if c2 > 0 else None
    return tuple(map(float, whole)), lowest


def exponent(found: list[Parabola]) -> float | None:
    """a of N ~ C^a through the minima that are not flagged; None of fewer than three."""
    sound = [each for each in found if each.parameters is not None]
    if len(sound) < 3:
        return None
    flops, sizes = zip(*((each.flops, each.parameters) for each in sound), strict=True)
    return float(np.polyfit(np.log(flops), np.log(sizes), 1)[0])
