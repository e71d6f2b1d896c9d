"""The test of a law: fitted without the largest budgets, what does it say of them?"""

import math
from typing import Any

import numpy as np

from nepa_jax.scaling.frontier import best_of_budgets, law_of_compute
from nepa_jax.scaling.huber import fit_huber
from nepa_jax.scaling.law import Law, loss
from nepa_jax.scaling.points import Points, problem
from nepa_jax.scaling.surface import fit_surface


def threshold_of(flops: np.ndarray, factor: float) -> float:
    """Runs of so many FLOPs and more are held out: the most over the factor, down to one digit."""
    limit = flops.max() / factor
    digit = 10.0 ** math.floor(math.log10(limit))
    return math.floor(limit / digit * (1 + 1e-9)) * digit


def held_out(
    points: Points, factor: float, resampled: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Errors of the held-out runs, relative to their loss; of the surface, beside others' below.

    Args:
        points: all that are fitted.
        factor: at least so far beyond the others, in compute.
        resampled: how many fits give the predictions' intervals.
        rng: draws them.

    Returns:
        ``mean``, ``max`` (of absolute errors), ``bias`` (signed), ``factor`` reached and ``baseline``
        (the mean error of saying the last budget's best loss); or ``why_not`` alone.
    """
    limit = threshold_of(points.flops, factor)
    out = points.flops >= limit
    rest, test = points.take(~out), points.take(out)
    if why := problem(rest):
        return {"why_not": f"without the runs of {limit:g} FLOPs and more: {why}"}
    laws = {name: fit(rest.parameters, rest.samples, rest.loss) for name, fit in FITS.items()}
    reached = test.flops.max() / rest.flops.max()
    errors = {name: errors_of(_said(law, test), test.loss) for name, law in laws.items()}
    baselines = {name: errors_of(said, test.loss) for name, said in _baselines(rest, test).items()}
    low, high = _predicted(rest, test, laws["surface"], resampled, rng)
    return {
        **errors["surface"],
        "factor": float(reached),
        "baseline": baselines["last_budget"]["mean"],
        **errors,
        "baselines": baselines,
        "flops_from": limit,
        "points": len(test),
        "fitted": {name: {**_constants(law), "points": len(rest)} for name, law in laws.items()},
        "inside": float(((low <= test.loss) & (test.loss <= high)).mean()),
        "runs": [
            {"name": str(n), "flops": c, "parameters": p, "loss": y, "predicted": s, "interval": [a, b]}
            for n, c, p, y, s, a, b in zip(
                test.name, test.flops, test.parameters, test.loss,
                _said(laws["surface"], test), low, high, strict=True,
            )
        ],
    }  # fmt: skip


def _predicted(
    rest: Points, test: Points, law: Law, resampled: int, rng: np.random.Generator
) -> np.ndarray:
    """Where 95 % of runs like these should lie [2, n]: the spread of the law and a run's own residual."""
    weights = rng.multinomial(len(rest), np.full(len(rest), 1 / len(rest)), resampled)
    many = fit_surface(rest.parameters, rest.samples, rest.loss, weights)
    residual = rng.choice(rest.loss / _said(law, rest), (resampled, len(test)))
    return np.percentile(_said(many, test) * residual, [2.5, 97.5], axis=0)


FITS = {"surface": fit_surface, "huber": fit_huber}


def _constants(law: Law) -> dict[str, float]:
    return {name: float(value) for name, value in law._asdict().items()}


def _said(law: Law, points: Points) -> np.ndarray:
    return loss(law, points.parameters, points.samples)


def errors_of(said: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Mean and largest absolute error and the signed mean, relative: .01 is 1 %."""
    error = said / found - 1
    size = np.abs(error)
    return {"mean": float(size.mean()), "max": float(size.max()), "bias": float(error.mean())}


def _baselines(rest: Points, test: Points) -> dict[str, np.ndarray]:
    """What one would say without a law of N and D."""
    last = rest.loss[best_of_budgets(rest.flops, rest.loss)[-1]]
    power = law_of_compute(rest)
    return {
        "last_budget": np.full(len(test), last),
        "power_law_in_compute": power["c"] + power["a"] * test.flops ** -power["g"],
    }
