"""The law, both estimators, and laws whose answer is known."""

from pathlib import Path

import numpy as np
import pytest
from laws import TRUE, grid, noisy
from scipy.optimize import nnls

from nepa_jax.scaling import law as laws
from nepa_jax.scaling.holdout import errors_of
from nepa_jax.scaling.huber import fit_huber, huber_error
from nepa_jax.scaling.law import exponents, optimum
from nepa_jax.scaling.points import Columns, read_csv
from nepa_jax.scaling.surface import fit_power, fit_surface, non_negative

CHINCHILLA = Path(__file__).parents[1] / "fixtures" / "scaling" / "chinchilla_points.csv"


@pytest.mark.parametrize("fit", [fit_surface, fit_huber])
def test_a_law_without_noise_is_found(fit):
    parameters, samples = grid()
    found = fit(parameters, samples, laws.loss(TRUE, parameters, samples))
    np.testing.assert_allclose(found, TRUE, rtol=2e-3)
    assert found.alpha == pytest.approx(0.3, abs=2e-5)


def test_the_optimum_is_the_least_loss_of_its_budget():
    best = optimum(TRUE, np.array([1e18]), 6.0)
    sizes = best.parameters[0] * np.geomspace(0.5, 2, 2001)
    along = laws.loss(TRUE, sizes, 1e18 / 6 / sizes)
    assert along.argmin() == 1000 and along.min() == pytest.approx(best.loss[0], rel=1e-12)
    later = optimum(TRUE, np.array([1e20]), 6.0)
    a = np.log(later.parameters / best.parameters) / np.log(100)
    assert a[0] == pytest.approx(exponents(TRUE)["a"])
    reducible = np.log((later.loss - TRUE.E) / (best.loss - TRUE.E)) / np.log(100)
    assert -reducible[0] == pytest.approx(exponents(TRUE)["gamma"])


def test_no_constant_is_below_0_as_scipy_has_it():
    rng = np.random.default_rng(0)
    for _ in range(40):
        columns, right = rng.normal(size=(12, 3)) + 0.3, rng.normal(size=12)
        found = non_negative(columns.T @ columns, columns.T @ right)
        np.testing.assert_allclose(found, nnls(columns, right)[0], atol=1e-9)


def test_runs_that_count_twice_are_as_runs_that_are_there_twice():
    parameters, samples, loss, rng = noisy(0)
    weights = rng.multinomial(len(loss), np.full(len(loss), 1 / len(loss)), 3)
    for fit, close in ((fit_surface, 1e-4), (fit_huber, 2e-2)):
        many = fit(parameters, samples, loss, weights)
        at = np.repeat(np.arange(len(loss)), weights[1])
        alone = fit(parameters[at], samples[at], loss[at])
        np.testing.assert_allclose(many.row(1)[3:], alone[3:], rtol=close)


def test_a_power_of_compute_is_found():
    flops = np.geomspace(1e15, 1e19, 9)
    c, a, g = fit_power(flops, 0.2 + 30 * flops**-0.12)
    np.testing.assert_allclose([c, a, g], [0.2, 30, 0.12], rtol=0.05)


def coverage(trials):
    """How often the 95 % intervals of resampled runs hold the truth."""
    hits = dict.fromkeys(("E", "alpha", "beta", "a", "gamma"), 0)
    true = {**TRUE._asdict(), **exponents(TRUE)}
    for seed in range(trials):
        parameters, samples, loss, rng = noisy(seed)
        weights = rng.multinomial(len(loss), np.full(len(loss), 1 / len(loss)), 200)
        many = fit_surface(parameters, samples, loss, weights)
        spreads = {**many._asdict(), **exponents(many)}
        for name in hits:
            low, high = np.percentile(spreads[name], [2.5, 97.5])
            hits[name] += bool(low <= true[name] <= high)
    return hits


@pytest.mark.chaos
def test_intervals_hold_the_truth_in_at_least_90_of_100_trials():
    assert min(coverage(100).values()) >= 90


def test_intervals_hold_the_truth_mostly():
    assert min(coverage(10).values()) >= 8


# Chinchilla's points (Besiroglu et al., arXiv 2404.10102): the constants are theirs and Open-Athena's


@pytest.fixture(scope="module")
def chinchilla():
    points = read_csv(CHINCHILLA, Columns())
    return points.take(np.argsort(-points.loss))  # the highest first


def test_chinchilla_by_squared_error_and_what_it_says_of_larger_budgets(chinchilla):
    points = chinchilla.take(np.arange(245) >= 5)
    rest, test = points.take(points.flops < 1e21), points.take(points.flops >= 1e21)
    assert (len(rest), len(test)) == (217, 23)
    found = fit_surface(rest.parameters, rest.samples, rest.loss)
    scaled = [found.E, found.A / 1e6**found.alpha, found.B / 1e9**found.beta, *found[3:]]
    np.testing.assert_allclose(scaled, [1.90509, 4.00052, 1.05095, 0.35106, 0.45874], atol=1e-5)
    residual = laws.loss(found, rest.parameters, rest.samples) - rest.loss
    assert (residual**2).sum() == pytest.approx(0.0624143, abs=1e-7)
    for fit, mean, most in ((fit_surface, 0.0129, 0.040), (fit_huber, 0.0105, 0.028)):
        law = fit(rest.parameters, rest.samples, rest.loss)
        errors = errors_of(laws.loss(law, test.parameters, test.samples), test.loss)
        assert errors["mean"] == pytest.approx(mean, abs=5e-5)
        assert errors["max"] == pytest.approx(most, abs=5e-4)


@pytest.mark.parametrize(
    ("without", "e", "a", "b", "alpha", "beta"),
    [(5, 1.8172, 478.2, 2143, 0.3474, 0.3672), (0, 1.891, 495.7, 12_826, 0.3493, 0.453)],
)
def test_chinchilla_by_hubers_error_and_what_five_points_do(chinchilla, without, e, a, b, alpha, beta):  # fmt: skip
    points = chinchilla.take(np.arange(245) >= without)
    found = fit_huber(points.parameters, points.samples, points.loss)
    np.testing.assert_allclose([found.E, found.alpha, found.beta], [e, alpha, beta], atol=5e-4)
    np.testing.assert_allclose([found.A, found.B], [a, b], rtol=2e-3)
    if without:
        error = huber_error(found, points.parameters, points.samples, points.loss)
        assert error * len(points) == pytest.approx(1.01827e-3, abs=1e-8)
