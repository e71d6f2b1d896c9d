"""Unique images against repeats: what is an image worth that was seen before?

D' = U + U R (1 - exp(-(D / U - 1) / R)) takes the place of D (arXiv 2305.16264, section 5.1, its part for
data); R is searched. The law of D alone is the case of an R without bound.
"""

from typing import Any

import numpy as np

from nepa_jax.scaling.law import loss
from nepa_jax.scaling.points import Points
from nepa_jax.scaling.surface import fit_surface

RATES = np.geomspace(0.3, 3000, 41)


def worth(samples: np.ndarray, unique: np.ndarray, rate: float) -> np.ndarray:
    """D' of D samples seen, of U different ones; all [n]."""
    again = np.maximum(samples / unique - 1, 0)
    return np.minimum(unique, samples) + unique * rate * -np.expm1(-again / rate)


def repeats(points: Points) -> dict[str, Any] | None:
    """R and what it changes; None where runs do not say how many images were different, or none repeats."""
    epochs = points.samples / points.unique
    if not np.isfinite(epochs).all() or epochs.max() <= 1.01:
        return None
    found = {}
    for rate in (*RATES, np.inf):
        data = points.samples if np.isinf(rate) else worth(points.samples, points.unique, rate)
        law = fit_surface(points.parameters, data, points.loss)
        residual = loss(law, points.parameters, data) - points.loss
        found[rate] = float((residual**2).sum()), law
    best = min(RATES, key=lambda rate: found[rate][0])
    return {
        "most_epochs": float(epochs.max()),
        "share_over_4_epochs": float((epochs > 4).mean()),
        "R": float(best),
        "at_the_edge": bool(best in (RATES[0], RATES[-1])),
        "squared_error": found[best][0],
        "squared_error_all_fresh": found[np.inf][0],
        "surface": {name: float(value) for name, value in found[best][1]._asdict().items()},
    }
