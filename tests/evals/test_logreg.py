"""Logistic regression on features."""

import numpy as np
import pytest

from nepa_jax.evals import logreg


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    points = rng.normal(size=(4, 10))[labels] * 2 + rng.normal(size=(400, 10))
    return points.astype(np.float32), labels


def accuracy(train, train_labels, points, labels):
    return np.mean(logreg.predict(train, train_labels, points) == labels)


def test_separates_what_a_plane_separates(data):
    points, labels = data
    assert accuracy(points[:300], labels[:300], points[300:], labels[300:]) > 0.9


def test_scale_and_offset_of_a_dimension_do_not_matter(data):
    points, labels = data
    moved = points * np.logspace(-3, 3, 10) + np.arange(10)
    wanted = logreg.predict(points[:300], labels[:300], points[300:])
    predicted = logreg.predict(moved[:300], labels[:300], moved[300:])
    assert np.mean(predicted == wanted) > 0.98


def test_constant_dimensions_do_no_harm(data):
    points, labels = data
    padded = np.concatenate([points, np.ones_like(points)], axis=1)
    wanted = accuracy(points[:300], labels[:300], points[300:], labels[300:])
    score = accuracy(padded[:300], labels[:300], padded[300:], labels[300:])
    assert score == pytest.approx(wanted, abs=0.02)


def test_shuffled_labels_leave_chance(data):
    points, labels = data
    shuffled = np.random.default_rng(1).permutation(labels[:300])
    assert accuracy(points[:300], shuffled, points[300:], labels[300:]) < 0.5
