"""Logistic regression on features: its solver, and how its penalty is chosen."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from nepa_jax.base.errors import UserError
from nepa_jax.evals import logreg, subsets

SHORT = replace(logreg.PROTOCOLS["short"], C=(1e-4, 1e-2, 1.0))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    points = rng.normal(size=(4, 10))[labels] * 2 + rng.normal(size=(400, 10))
    return points.astype(np.float32), labels


def accuracy(train, train_labels, points, labels):
    return logreg.fitted(train, train_labels, points, labels, SHORT)[0]["top1"]


def predict(train, train_labels, points):
    ((_, ranked),) = logreg.path(train, train_labels, points, [1.0], SHORT)
    return ranked[:, 0]


def test_separates_what_a_plane_separates(data):
    points, labels = data
    assert accuracy(points[:300], labels[:300], points[300:], labels[300:]) > 0.9


def test_scale_and_offset_of_a_dimension_do_not_matter(data):
    points, labels = data
    moved = points * np.logspace(-3, 3, 10) + np.arange(10)
    wanted = predict(points[:300], labels[:300], points[300:])
    predicted = predict(moved[:300], labels[:300], moved[300:])
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


def test_the_penalty_is_chosen_by_held_out_training_images_alone(data):
    points, labels = data
    number, grid = logreg.fitted(points[:300], labels[:300], points[300:], labels[300:], SHORT)
    other, same = logreg.fitted(points[:300], labels[:300], points[300:], labels[300:][::-1], SHORT)
    assert [row["held_out"] for row in grid] == [row["held_out"] for row in same]
    assert number["C"] == other["C"] == max(grid, key=lambda row: row["held_out"])["C"]
    assert number["fitted_images"] == 300 and grid[0]["fitted_images"] == 270
    assert len(subsets.hold_out(labels[:300])[1]) == 30


def test_a_row_of_the_grid_is_scikit_learns_own(data):
    points, labels = data
    x = points.astype(np.float64)
    x = (x - x[:300].mean(0)) / x[:300].std(0)
    wanted = LogisticRegression(C=0.01, tol=1e-8, max_iter=500).fit(x[:300], labels[:300])
    exact = replace(SHORT, tolerance=1e-8, iterations=500)
    *_, (row, ranked) = logreg.path(points[:300], labels[:300], points[300:], (1e-4, 0.01), exact)
    np.testing.assert_array_equal(ranked[:, 0], wanted.predict(x[300:]))
    assert row["C"] == 0.01


def test_the_grid_of_dinov3_is_whole():
    protocol = logreg.PROTOCOLS["dinov3"]
    assert len(protocol.C) == 45 and protocol.C[0] == 1e-6 and protocol.C[-1] == 1e5
    lengths = [np.linalg.norm(rows, axis=1) for rows in logreg.normed(*np.eye(6).reshape(2, 3, 6) * 3, protocol.features)]  # fmt: skip
    np.testing.assert_allclose(lengths, 1)


def test_one_image_of_a_class_leaves_nothing_to_choose_by(data):
    points, labels = data
    first = [int(np.argmax(labels == c)) for c in range(4)]
    number, grid = logreg.fitted(points[first], labels[first], points, labels, SHORT)
    assert not grid and number["C"] == 1.0 and "held_out" not in number


def test_one_class_is_the_users_error(data):
    points, _ = data
    with pytest.raises(UserError, match="one class"):
        logreg.fitted(points[:9], np.zeros(9, int), points, np.zeros(400, int), SHORT)
