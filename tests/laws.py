"""Simulated runs of a law that is known."""

import numpy as np

from nepa_jax.scaling import law as laws
from nepa_jax.scaling.law import Law

TRUE = Law(*map(np.array, (0.4, 20.0, 60.0, 0.3, 0.35)))


def grid(budgets=6, sizes=8):
    """Runs about the optimum of each budget: N and D [n]."""
    flops = np.geomspace(1e16, 1e19, budgets)
    parameters = np.geomspace(0.2, 5, sizes) * np.sqrt(flops / 360)[:, None]
    return parameters.ravel(), (flops[:, None] / 6 / parameters).ravel()


def noisy(seed, sigma=0.005):
    parameters, samples = grid()
    rng = np.random.default_rng(seed)
    loss = laws.loss(TRUE, parameters, samples)
    return parameters, samples, loss * np.exp(rng.normal(0, sigma, len(loss))), rng
