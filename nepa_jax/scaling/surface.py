"""Squared error by variable projection: alpha and beta are searched, E, A, B solved for, none below 0.

In five dimensions the problem is ill-conditioned; in these two it is not (Golub and Pereyra 1973).
All resamplings are fitted side by side, each from a grid of starts.
"""

from itertools import product
from typing import NamedTuple

import numpy as np

from nepa_jax.scaling.law import Law

STARTS = np.linspace(0.04, 1.9, 16)  # of both exponents
LEAST, MOST = 0.005, 3.0  # of an exponent
ROUNDS, PRECISION = 80, 1e-6


class _Data(NamedTuple):
    """Logs of N and D about their middles [n], the loss [n], and how much each run counts [R, n]."""

    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    weights: np.ndarray


def fit_surface(
    parameters: np.ndarray, samples: np.ndarray, loss: np.ndarray, weights: np.ndarray | None = None
) -> Law:
    """The law of least squared error.

    Args:
        parameters: N [n].
        samples: D [n].
        loss: [n].
        weights: how often each run counts, [R, n] for R fits at once; None: once, one fit.

    Returns:
        Constants [R], or () without weights.
    """
    log_n, log_d = np.log(parameters), np.log(samples)
    many = np.ones((1, len(loss))) if weights is None else np.asarray(weights, float)
    data = _Data(log_n - log_n.mean(), log_d - log_d.mean(), np.asarray(loss, float), many)
    alpha, beta, (e, a, b) = _search(data)
    law = Law(e, a * np.exp(alpha * log_n.mean()), b * np.exp(beta * log_d.mean()), alpha, beta)
    return law.row(0) if weights is None else law


def _search(data: _Data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha, beta [R] and the constants [3, R] at the least error: the grid's best, then closer."""
    rows = np.arange(len(data.weights))
    grid = np.broadcast_to(STARTS, (len(rows), len(STARTS)))
    alpha, beta, _, _ = _best(data, grid, grid)
    step = np.full(len(rows), STARTS[1] - STARTS[0])
    for _ in range(ROUNDS):
        around = np.linspace(-1, 1, 5) * step[:, None]
        alphas = np.clip(alpha[:, None] + around, LEAST, MOST)
        betas = np.clip(beta[:, None] + around, LEAST, MOST)
        alpha, beta, inside, constants = _best(data, alphas, betas)
        step = np.where(inside, step / 2, step)
        if step.max() < PRECISION:
            break
    return alpha, beta, constants


def _best(
    data: _Data, alphas: np.ndarray, betas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of exponents [R, a] and [R, b] the best pair, whether it is none at the rim, its constants."""
    error, constants = _projected(data, alphas, betas)
    rows = np.arange(len(error))
    i, j = np.unravel_index(error.reshape(len(rows), -1).argmin(1), error.shape[1:])
    rim = (i == 0) | (i == alphas.shape[1] - 1) | (j == 0) | (j == betas.shape[1] - 1)
    alpha, beta = alphas[rows, i], betas[rows, j]
    bound = np.isin(alpha, (LEAST, MOST)) | np.isin(beta, (LEAST, MOST))
    return alpha, beta, ~rim | bound, constants[rows, i, j].T


def _projected(data: _Data, alphas: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared error [R, a, b] and constants [R, a, b, 3] of every pair of exponents."""
    w = data.weights
    x = np.exp(-data.n[:, None] * alphas[:, None, :])  # [R, n, a]
    y = np.exp(-data.d[:, None] * betas[:, None, :])
    wx, wy, wl = w[..., None] * x, w[..., None] * y, w * data.loss
    shape = (len(w), alphas.shape[1], betas.shape[1])
    gram, right = np.empty((*shape, 3, 3)), np.empty((*shape, 3))
    gram[..., 0, 0] = w.sum(1)[:, None, None]
    gram[..., 0, 1] = gram[..., 1, 0] = wx.sum(1)[:, :, None]
    gram[..., 0, 2] = gram[..., 2, 0] = wy.sum(1)[:, None, :]
    gram[..., 1, 1] = (wx * x).sum(1)[:, :, None]
    gram[..., 2, 2] = (wy * y).sum(1)[:, None, :]
    gram[..., 1, 2] = gram[..., 2, 1] = wx.transpose(0, 2, 1) @ y
    right[..., 0] = wl.sum(1)[:, None, None]
    right[..., 1] = np.einsum("rn,rna->ra", wl, x)[:, :, None]
    right[..., 2] = np.einsum("rn,rnb->rb", wl, y)[:, None, :]
    constants = non_negative(gram, right)
    squares = (wl * data.loss).sum(1)[:, None, None]
    return squares - (constants * right).sum(-1), constants


def non_negative(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Least squares with no constant below 0: [..., k] of normal equations [..., k, k] and [..., k].

    Tries every choice of constants that are 0, where the free solution has one below.
    """
    scale = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    gram, right = gram / (scale[..., None] * scale[..., None, :]), right / scale
    gram = gram + 1e-13 * np.eye(gram.shape[-1])  # exponents near 0 make columns alike
    found = np.linalg.solve(gram, right[..., None])[..., 0]
    wrong = (found < 0).any(-1)
    if wrong.any():
        found[wrong] = _with_zeros(gram[wrong], right[wrong])
    return found / scale


def _with_zeros(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The same for those [m, k] of which some constants are 0."""
    best, gained = np.zeros_like(right), np.zeros(len(right))
    for used in product((0.0, 1.0), repeat=right.shape[-1]):
        on = np.array(used)
        some = gram * np.outer(on, on) + np.diag(1 - on)
        tried = np.linalg.solve(some, (right * on)[..., None])[..., 0]
        gain = np.where((tried >= 0).all(-1), (tried * right).sum(-1), -np.inf)
        best, gained = np.where((gain > gained)[:, None], tried, best), np.maximum(gain, gained)
    return best


def fit_power(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, ...]:
    """y = c + a x^-g of least squared error, c and a at least 0: c, a, g, [R] or ().

    Args:
        x: above 0, [n].
        y: [n].
        weights: as for :func:`fit_surface`.
    """
    logs = np.log(x) - np.log(x).mean()
    w = np.ones((1, len(y))) if weights is None else np.asarray(weights, float)
    powers = np.geomspace(0.005, 2.0, 600)
    curves = np.exp(-logs[:, None] * powers)  # [n, g]
    gram = np.empty((len(w), len(powers), 2, 2))
    gram[..., 0, 0] = w.sum(1)[:, None]
    gram[..., 0, 1] = gram[..., 1, 0] = w @ curves
    gram[..., 1, 1] = w @ curves**2
    right = np.stack([np.repeat((w @ y)[:, None], len(powers), 1), (w * y) @ curves], -1)
    constants = non_negative(gram, right)
    best = (constants * right).sum(-1).argmax(1)
    c, a = constants[np.arange(len(w)), best].T
    g = powers[best]
    found = c, a * np.exp(g * np.log(x).mean()), g
    return tuple(part[0] for part in found) if weights is None else found
