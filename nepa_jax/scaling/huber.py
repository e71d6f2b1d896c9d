"""The second estimator: Huber's error of log losses, as in arXiv 2203.15556, from a grid of starts."""

from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from nepa_jax.scaling.law import Law
from nepa_jax.scaling.surface import fit_surface

DELTA = 1e-3  # of log losses
STEPS = 120  # of reweighted least squares; what is left, L-BFGS does


class _Data(NamedTuple):
    """Logs of N and D about their middles, and of the loss, [n]."""

    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray


def fit_huber(
    parameters: np.ndarray, samples: np.ndarray, loss: np.ndarray, weights: np.ndarray | None = None
) -> Law:
    """The law of least Huber error of log losses; arguments and result as :func:`fit_surface`.

    One fit begins at the law of least squares and at a grid, and ends with L-BFGS. Several begin each
    at its own law of least squares and at the one of all runs.
    """
    log_n, log_d = np.log(parameters), np.log(samples)
    data = _Data(log_n - log_n.mean(), log_d - log_d.mean(), np.log(loss))
    middle = log_n.mean(), log_d.mean()
    if weights is None:
        first = _logs(fit_surface(parameters, samples, loss), *middle)
        found, error = _descend(data, np.stack([first, *_grid(data)]), np.ones(len(loss)))
        return _law(_polished(data, found[error.argmin()]), *middle)
    whole = _logs(fit_huber(parameters, samples, loss), *middle)
    own = _logs(fit_surface(parameters, samples, loss, weights), *middle)
    ways = [_descend(data, start, weights) for start in (own, np.broadcast_to(whole, own.shape))]
    better = ways[0][1] <= ways[1][1]
    return _law(np.where(better[:, None], ways[0][0], ways[1][0]), *middle)


def huber_error(law: Law, parameters: np.ndarray, samples: np.ndarray, loss: np.ndarray) -> float:
    """The mean of Huber's error of the log losses, over the runs: what is minimised."""
    log_n, log_d = np.log(parameters), np.log(samples)
    residual, _ = _residual(_Data(log_n, log_d, np.log(loss)), _logs(law, 0.0, 0.0)[None])
    return float(_huber(residual).mean())


def _logs(law: Law, log_n: float, log_d: float) -> np.ndarray:
    """log A, log B, log E, alpha, beta [..., 5], of N and D about their middles."""
    tiny = 1e-6
    a = np.log(np.maximum(law.A, 1e-300)) - law.alpha * log_n
    b = np.log(np.maximum(law.B, 1e-300)) - law.beta * log_d
    a, b, e = (np.maximum(x, np.log(tiny)) for x in (a, b, np.log(np.maximum(law.E, tiny))))
    return np.stack([a, b, e, law.alpha, law.beta], -1)


def _law(logs: np.ndarray, log_n: float, log_d: float) -> Law:
    a, b, e, alpha, beta = np.moveaxis(logs, -1, 0)
    return Law(np.exp(e), np.exp(a + alpha * log_n), np.exp(b + beta * log_d), alpha, beta)


def _grid(data: _Data) -> list[np.ndarray]:
    """Starts over exponents and the share of the least loss that is E."""
    least = data.loss.min()
    return [
        np.array([least - 1, least - 1, least + np.log(share), alpha, beta])
        for share, alpha, beta in product((0.3, 0.8), (0.2, 0.4, 0.8), (0.2, 0.4, 0.8))
    ]


def _residual(data: _Data, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predicted minus found log losses [R, n], and what each of the five changes [R, n, 5]."""
    a, b, e, alpha, beta = (logs[:, k, None] for k in range(5))
    parts = np.stack(np.broadcast_arrays(a - alpha * data.n, b - beta * data.d, e + 0 * data.n), -1)
    top = parts.max(-1, keepdims=True)
    shares = np.exp(parts - top)
    total = shares.sum(-1, keepdims=True)
    shares /= total
    by_exponent = -shares[..., :2] * np.stack([data.n, data.d], -1)
    residual = (top + np.log(total))[..., 0] - data.loss
    return residual, np.concatenate([shares, by_exponent], -1)


def _huber(residual: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2))


def _descend(data: _Data, logs: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reweighted, damped least squares of all starts side by side: [R, 5], and the errors [R]."""
    damping = np.full(len(logs), 1e-2)
    residual, slopes = _residual(data, logs)
    error = (weights * _huber(residual)).sum(-1)
    for _ in range(STEPS):
        counts = weights * DELTA / np.maximum(np.abs(residual), DELTA)
        weighted = slopes * counts[..., None]
        gram = weighted.transpose(0, 2, 1) @ slopes
        right = np.einsum("rnk,rn->rk", weighted, residual)
        ridge = damping[:, None] * np.diagonal(gram, axis1=1, axis2=2) + 1e-12
        step = np.linalg.solve(gram + ridge[..., None] * np.eye(5), right[..., None])[..., 0]
        tried = logs - np.clip(step, -1, 1)
        tried[:, 3:] = np.clip(tried[:, 3:], 0.005, 3.0)
        new_residual, new_slopes = _residual(data, tried)
        new_error = (weights * _huber(new_residual)).sum(-1)
        good = new_error < error
        logs = np.where(good[:, None], tried, logs)
        residual = np.where(good[:, None], new_residual, residual)
        slopes = np.where(good[:, None, None], new_slopes, slopes)
        error = np.where(good, new_error, error)
        damping = np.clip(np.where(good, damping / 4, damping * 6), 1e-9, 1e9)
    return logs, error


def _polished(data: _Data, logs: np.ndarray) -> np.ndarray:
    """By L-BFGS, to its end."""

    def value_and_slope(logs: np.ndarray) -> tuple[float, np.ndarray]:
        residual, slopes = _residual(data, logs[None])
        slope = np.clip(residual[0], -DELTA, DELTA) @ slopes[0]
        return _huber(residual).sum() / DELTA, slope / DELTA

    limits = [(None, None)] * 3 + [(0.005, 3.0)] * 2
    options = {"maxiter": 1000, "ftol": 1e-15, "gtol": 1e-9}
    return minimize(value_and_slope, logs, jac=True, method="L-BFGS-B", bounds=limits, options=options).x  # fmt: skip
