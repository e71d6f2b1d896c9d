"""The law L(N, D) = E + A / N^alpha + B / D^beta (arXiv 2203.15556, approach 3), and what follows from it."""

from typing import NamedTuple

import numpy as np


class Law(NamedTuple):
    """Five constants, each float64 of one shape: () of one law, [R] of as many resamplings."""

    E: np.ndarray  # the loss that neither size nor data remove
    A: np.ndarray  # of N in parameters
    B: np.ndarray  # of D in samples
    alpha: np.ndarray
    beta: np.ndarray

    def row(self, index: int) -> "Law":
        """One of several."""
        return Law(*(np.asarray(constant)[index] for constant in self))


def loss(law: Law, parameters: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The law's loss: float64 [..., n] for constants [...] and runs [n].

    Args:
        law: its constants.
        parameters: N, above 0.
        samples: D, those seen, above 0.
    """
    e, a, b, alpha, beta = (np.asarray(constant)[..., None] for constant in law)
    return e + a * np.exp(-alpha * np.log(parameters)) + b * np.exp(-beta * np.log(samples))


class Optimum(NamedTuple):
    """The cheapest way to a loss at each budget, float64 [..., c]."""

    parameters: np.ndarray
    samples: np.ndarray
    loss: np.ndarray


def optimum(law: Law, flops: np.ndarray, cost: float) -> Optimum:
    """The least loss of budgets C = cost N D: N = G (C / cost)^a, a = beta / (alpha + beta).

    Args:
        law: its constants [...], alpha and beta above 0.
        flops: budgets C [c].
        cost: FLOPs for a parameter and a sample; 6 of dense language models.
    """
    e, a, b, alpha, beta = (np.asarray(constant)[..., None] for constant in law)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_g = np.log(alpha * a / (beta * b)) / (alpha + beta)
    products = np.log(np.asarray(flops) / cost)
    log_n = log_g + beta / (alpha + beta) * products
    log_d = products - log_n
    with np.errstate(invalid="ignore", over="ignore"):
        least = e + a * np.exp(-alpha * log_n) + b * np.exp(-beta * log_d)
        return Optimum(np.exp(log_n), np.exp(log_d), least)


def exponents(law: Law) -> dict[str, np.ndarray]:
    """How the optimum's size (``a``), samples (``b``) and reducible loss (``gamma``) go with compute."""
    total = law.alpha + law.beta
    return {"a": law.beta / total, "b": law.alpha / total, "gamma": law.alpha * law.beta / total}
