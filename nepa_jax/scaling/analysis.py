"""Everything that ``scaling fit`` finds of one objective's runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.scaling import frontier
from nepa_jax.scaling.frontier import Parabola
from nepa_jax.scaling.holdout import FITS, held_out
from nepa_jax.scaling.huber import fit_huber, huber_error
from nepa_jax.scaling.law import Law, exponents, loss, optimum
from nepa_jax.scaling.points import Points, excluding, problem
from nepa_jax.scaling.repeats import repeats
from nepa_jax.scaling.surface import fit_surface

FAR = 10.0  # times the middle residual's spread: a run that may decide the fit
LEAST_RESAMPLED = 200


@dataclass(frozen=True)
class Asked:
    """The choices of an analysis."""

    exclude: Sequence[str] = ()  # rules, see points.excluding
    factor: float = 8.0  # how far the hold-out is beyond the rest, in compute
    resampled: int = LEAST_RESAMPLED
    offset: float = 0.0  # added to the loss
    seed: int = 0


@dataclass(frozen=True)
class Analysis:
    """What was found, as JSON values, and what figures are drawn from."""

    found: dict[str, Any]  # what goes to fit.json
    points: Points  # that are fitted, with the offset
    left_out: Points  # excluded, with the offset
    law: Law
    many: Law  # of resampled runs, [R]
    parabolas: Sequence[Parabola]
    cost: float  # FLOPs for a parameter and a sample


def analyse(points: Points, asked: Asked) -> Analysis:
    """Fits both estimators, resamples runs, holds out the largest budgets.

    Raises:
        UserError: no law can be fitted to these.
    """
    kept, excluded = excluding(points, asked.exclude)
    raised = points.raised(asked.offset)
    used = raised.take(kept)
    if why := problem(used):
        raise UserError(why + (f" ({len(excluded)} were excluded)" if excluded else ""))
    rng = np.random.default_rng(asked.seed)
    laws = {name: fit(used.parameters, used.samples, used.loss) for name, fit in FITS.items()}
    weights = rng.multinomial(len(used), np.full(len(used), 1 / len(used)), asked.resampled)
    many = {
        "surface": fit_surface(used.parameters, used.samples, used.loss, weights),
        "huber": fit_huber(used.parameters, used.samples, used.loss, weights),
    }
    cost = float(np.exp(np.log(used.flops / used.parameters / used.samples).mean()))
    curves = frontier.parabolas(used, laws["surface"], cost)
    found = {
        **{name: told(law, many[name], used) for name, law in laws.items()},
        "holdout": held_out(used, asked.factor, asked.resampled, rng),
        "excluded": [run._asdict() for run in excluded],
        "without_exclusions": _without_exclusions(raised) if asked.exclude else None,
        "far": _far(used, laws["huber"]),
        "compute": frontier.law_of_compute(used),
        "optimum": _optimum(laws["surface"], many["surface"], used, cost),
        "isoflop": {"a": frontier.exponent(curves), "budgets": [asdict(each) for each in curves]},
        "repeats": repeats(used),
        "set": _facts(used, cost),
        "choices": {**asdict(asked), "exclude": list(asked.exclude)},
    }
    return Analysis(found, used, raised.take(~kept), laws["surface"], many["surface"], curves, cost)


def told(law: Law, many: Law, points: Points) -> dict[str, Any]:
    """Constants (N in parameters, D in samples), exponents, 95 % intervals, how well it fits."""
    said = loss(law, points.parameters, points.samples)
    values, spreads = {**law._asdict(), **exponents(law)}, {**many._asdict(), **exponents(many)}
    around = points.loss - points.loss.mean()
    return {
        **{name: float(value) for name, value in values.items()},
        "points": len(points),
        "interval": {name: interval(spread) for name, spread in spreads.items()},
        "scaled": {  # the same with N in millions and D in thousand millions
            "A": float(law.A / 1e6**law.alpha),
            "B": float(law.B / 1e9**law.beta),
        },
        "squared_error": float(((said - points.loss) ** 2).sum()),
        "huber_error": huber_error(law, points.parameters, points.samples, points.loss),
        "r2": float(1 - ((said - points.loss) ** 2).sum() / (around**2).sum()),
    }


def interval(spread: np.ndarray) -> list[float]:
    """The middle 95 % of resamplings."""
    return np.percentile(spread, [2.5, 97.5]).tolist()


def _without_exclusions(points: Points) -> dict[str, Any] | None:
    """Both fits of all runs with a loss."""
    whole = points.take(np.isfinite(points.loss))
    if problem(whole):
        return None
    laws = {name: fit(whole.parameters, whole.samples, whole.loss) for name, fit in FITS.items()}
    return {
        name: {**{key: float(value) for key, value in law._asdict().items()}, "points": len(whole)}
        for name, law in laws.items()
    }


def _far(points: Points, law: Law) -> list[dict[str, Any]]:
    """Runs that lie far from the robust law, as multiples of the usual distance."""
    residual = np.log(points.loss) - np.log(loss(law, points.parameters, points.samples))
    usual = 1.4826 * np.median(np.abs(residual))
    times = residual / max(usual, 1e-12)
    return [
        {"name": str(points.name[i]), "loss": float(points.loss[i]), "times": float(times[i])}
        for i in np.flatnonzero((np.abs(times) > FAR) & (np.abs(residual) > 1e-6))
    ]


def _optimum(law: Law, many: Law, points: Points, cost: float) -> list[dict[str, Any]]:
    """Size, samples and loss of the cheapest way at budgets from the least to ten times the most."""
    lowest, highest = np.log10(points.flops.min()), np.log10(points.flops.max()) + 1
    flops = np.logspace(lowest, highest, 9)
    best, spread = optimum(law, flops, cost), optimum(many, flops, cost)
    return [
        {
            "flops": float(c),
            "extrapolated": bool(c > points.flops.max()),
            **{name: float(value[i]) for name, value in best._asdict().items()},
            "interval": {name: _finite_interval(v[:, i]) for name, v in spread._asdict().items()},
        }
        for i, c in enumerate(flops)
    ]


def _finite_interval(spread: np.ndarray) -> list[float] | None:
    finite = spread[np.isfinite(spread)]
    return interval(finite) if len(finite) > len(spread) / 2 else None


def _facts(points: Points, cost: float) -> Mapping[str, Any]:
    products = points.flops / points.parameters / points.samples
    epochs = points.samples / points.unique
    return {
        "runs": len(points),
        "sizes": len(np.unique(points.parameters)),
        "parameters": [float(points.parameters.min()), float(points.parameters.max())],
        "flops": [float(points.flops.min()), float(points.flops.max())],
        "samples": [float(points.samples.min()), float(points.samples.max())],
        "samples_per_parameter": sorted_ends(points.samples / points.parameters),
        "epochs": sorted_ends(epochs) if np.isfinite(epochs).all() else None,
        "flops_per_parameter_and_sample": cost,
        "its_range": sorted_ends(products),
    }


def sorted_ends(values: np.ndarray) -> list[float]:
    """The least and the most."""
    return [float(values.min()), float(values.max())]
