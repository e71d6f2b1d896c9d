"""Ranks of features whose spectrum is known."""

import numpy as np
import pytest

from nepa_jax.evals.frozen import Frozen
from nepa_jax.evals.rank import decay, health, probe


def with_spectrum(sigma: np.ndarray, n: int = 500, seed: int = 0) -> np.ndarray:
    """Features of mean zero with these singular values."""
    rng = np.random.default_rng(seed)
    left = rng.normal(size=(n, len(sigma)))
    left, _ = np.linalg.qr(left - left.mean(axis=0))
    right, _ = np.linalg.qr(rng.normal(size=(len(sigma), len(sigma))))
    return left @ np.diag(sigma) @ right


def test_equal_directions_count_each():
    found = health(with_spectrum(np.r_[np.ones(7), np.zeros(9)]))
    assert found["rankme"] == pytest.approx(7, abs=1e-3)  # its 1e-7 counts the empty ones a little
    assert found["effective_rank"] == pytest.approx(7, abs=1e-6)


def test_rankme_is_the_papers_formula_and_sees_the_mean():
    x = with_spectrum(np.linspace(1, 3, 12)) + 0.5
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    found, centred = health(x), health(x - 0.5)
    assert found["rankme"] == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    assert found["rankme"] < centred["rankme"]
    assert found["effective_rank"] == pytest.approx(centred["effective_rank"])
    assert found["alpha"] == pytest.approx(centred["alpha"])


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_is_the_exponent_of_a_power_law(alpha):
    assert decay(np.arange(1.0, 300) ** -alpha) == pytest.approx(alpha)
    first_are_others = np.r_[1e3, 1e3, 1e3, np.arange(4.0, 300) ** -alpha]
    assert decay(first_are_others) == pytest.approx(alpha)


def test_few_dimensions_and_none_have_no_exponent():
    assert decay(np.ones(4)) is None
    dead = health(np.zeros((20, 8)))
    assert dead == {"rankme": 0.0, "effective_rank": 0.0, "alpha": None}


def test_the_report_names_formulas_and_images():
    layers = [with_spectrum(np.ones(8)).astype(np.float32)] * 2
    labels = np.full(500, -1, np.int32)
    found = probe(Frozen({"mean": layers}, (0, 1), labels, labels, (), (1, 1), ""))
    assert found.protocol["train_images"] == 500 and "not centred" in found.protocol["rankme"]
    assert found.metric == "rankme" and found.chance is None and len(found.rows) == 2
