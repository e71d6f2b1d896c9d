"""kNN: what must hold whatever the features are, and a plain second computation."""

import numpy as np
import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.evals import knn


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    centres = rng.normal(size=(5, 12))
    points = centres[labels] + 1.5 * rng.normal(size=(300, 12))
    return points.astype(np.float32), labels


def accuracy(train, train_labels, points, labels):
    return np.mean(knn.predict(train, train_labels, points) == labels)


def plain(train, train_labels, points):
    """The definition, one query after the other, in float64."""
    train = train / np.linalg.norm(train.astype(float), axis=1, keepdims=True)
    points = points / np.linalg.norm(points.astype(float), axis=1, keepdims=True)
    predictions = []
    for point in points:
        cosines = train @ point
        nearest = np.argsort(-cosines)[: knn.NUM_NEIGHBORS]
        weights = np.exp(cosines[nearest] / knn.TEMPERATURE)
        predictions.append(np.argmax(np.bincount(train_labels[nearest], weights)))
    return np.array(predictions)


def test_equals_the_definition(data):
    points, labels = data
    wanted = plain(points[:200], labels[:200], points[200:])
    np.testing.assert_array_equal(knn.predict(points[:200], labels[:200], points[200:]), wanted)


def test_tiles_change_nothing(data, monkeypatch):
    points, labels = data
    wanted = knn.predict(points[:200], labels[:200], points[200:])
    monkeypatch.setattr(knn, "QUERIES", 32)
    monkeypatch.setattr(knn, "BANK", 48)
    np.testing.assert_array_equal(knn.predict(points[:200], labels[:200], points[200:]), wanted)


def test_order_of_the_training_set_does_not_matter(data):
    points, labels = data
    order = np.random.default_rng(1).permutation(200)
    wanted = knn.predict(points[:200], labels[:200], points[200:])
    shuffled = knn.predict(points[:200][order], labels[:200][order], points[200:])
    np.testing.assert_array_equal(shuffled, wanted)


def test_length_of_features_does_not_matter(data):
    points, labels = data
    scales = np.random.default_rng(2).uniform(0.1, 10, (300, 1)).astype(np.float32)
    wanted = knn.predict(points[:200], labels[:200], points[200:])
    scaled = points * scales
    np.testing.assert_array_equal(knn.predict(scaled[:200], labels[:200], scaled[200:]), wanted)


def test_a_set_against_itself_is_nearly_perfect_where_classes_are_apart():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 25)
    points = (np.eye(4)[labels] * 10 + rng.normal(size=(100, 4))).astype(np.float32)
    assert accuracy(points, labels, points, labels) == 1.0


def test_shuffled_labels_leave_chance(data):
    points, labels = data
    rng = np.random.default_rng(3)
    score = accuracy(points[:200], rng.permutation(labels[:200]), points[200:], labels[200:])
    assert score < 0.45


def test_too_small_a_training_set_is_the_users_error(data):
    points, labels = data
    with pytest.raises(UserError, match="20 neighbours"):
        knn.predict(points[:19], labels[:19], points)
