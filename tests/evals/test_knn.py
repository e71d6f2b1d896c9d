"""kNN: DINO's own numbers, a plain second computation, and what must hold whatever the features are."""

from pathlib import Path

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


THE_ONE = knn.Setting(knn.NUM_NEIGHBORS, knn.TEMPERATURE)


def predict(train, train_labels, points):
    return knn.ranking(train, train_labels, points, [THE_ONE])[0, :, 0]


def accuracy(train, train_labels, points, labels):
    return np.mean(predict(train, train_labels, points) == labels)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "fixtures" / "golden2" / "knn.npz") as arrays:
        return dict(arrays)


def test_votes_and_predictions_are_those_of_dino(golden):
    """facebookresearch/dino at 7c446df, eval_knn.py; the last class has no training image."""
    settings = [knn.Setting(k, T) for k in (1, 5, 20) for T in (0.07, 1.0)]
    bank, labels = golden["input.train_features"], golden["input.train_labels"]
    queries = golden["input.test_features"]
    votes, _ = map(np.concatenate, zip(*knn.votes(bank, labels, queries, settings), strict=True))
    ranked = knn.ranking(bank, labels, queries, settings)
    for place, (k, T) in enumerate(settings):
        key = f"out.k{k}.T{T}"
        clear = golden[f"{key}.cut_tie"] == 0
        wanted = golden[f"{key}.votes"][clear][:, : votes.shape[2]]
        np.testing.assert_allclose(votes[place][clear], wanted, rtol=3e-6, atol=3e-6 * wanted.max())
        clear &= golden[f"{key}.vote_tie"] == 0
        np.testing.assert_array_equal(ranked[place, clear, 0], golden[f"{key}.prediction"][clear])


def test_top5_counts_classes_that_have_a_vote(golden):
    found = knn.scores(
        golden["input.train_features"], golden["input.train_labels"],
        golden["input.test_features"], golden["input.test_labels"],
        [knn.Setting(1, 0.07), knn.Setting(20, 0.07)],
    )  # fmt: skip
    assert found[0]["top1"] == found[0]["top5"] == pytest.approx(0.67, abs=0.011)  # row 0 is a tie
    assert (found[1]["top1"], found[1]["top5"]) == pytest.approx((0.69, 0.94))


def test_several_settings_at_once_are_each_alone(data):
    points, labels = data
    settings = [knn.Setting(k, T) for k in (5, 50, 200) for T in (0.07, 0.2)]
    together = knn.ranking(points[:250], labels[:250], points[250:], settings)
    for place, setting in enumerate(settings):
        alone = knn.ranking(points[:250], labels[:250], points[250:], [setting])
        np.testing.assert_array_equal(together[place], alone[0])


def test_the_largest_are_found_group_by_group():
    x = np.random.default_rng(0).permutation(20 * knn.GROUP * 4).reshape(4, -1).astype(np.float32)
    top, places = knn.largest(x, 7)
    wanted = np.argsort(-x, axis=1)[:, :7]
    np.testing.assert_array_equal(places, wanted)
    np.testing.assert_array_equal(top, np.take_along_axis(x, wanted, axis=1))


def test_a_class_without_training_images_is_never_predicted(data):
    points, labels = data
    kept = labels[:200] != 4
    predicted = predict(points[:200][kept], labels[:200][kept], points[200:])
    assert set(predicted) <= {0, 1, 2, 3}
    everything = np.arange(5)
    padded = knn.ranking(points[:200][kept], labels[:200][kept], points[200:], [THE_ONE])
    assert padded.shape[2] == 4 and set(np.unique(padded)) <= {-1, *everything[:4]}


def test_neighbours_that_are_not_there_are_said(data, capsys):
    assert knn.usable((5, 20, 200), 60) == [5, 20]
    assert "60 training images, so k = 200 is left out" in capsys.readouterr().err


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
    np.testing.assert_array_equal(predict(points[:200], labels[:200], points[200:]), wanted)


def test_tiles_change_nothing(data, monkeypatch):
    points, labels = data
    wanted = predict(points[:200], labels[:200], points[200:])
    monkeypatch.setattr(knn, "QUERIES", 32)
    monkeypatch.setattr(knn, "BANK", 48)
    np.testing.assert_array_equal(predict(points[:200], labels[:200], points[200:]), wanted)


def test_order_of_the_training_set_does_not_matter(data):
    points, labels = data
    order = np.random.default_rng(1).permutation(200)
    wanted = predict(points[:200], labels[:200], points[200:])
    shuffled = predict(points[:200][order], labels[:200][order], points[200:])
    np.testing.assert_array_equal(shuffled, wanted)


def test_length_of_features_does_not_matter(data):
    points, labels = data
    scales = np.random.default_rng(2).uniform(0.1, 10, (300, 1)).astype(np.float32)
    wanted = predict(points[:200], labels[:200], points[200:])
    scaled = points * scales
    np.testing.assert_array_equal(predict(scaled[:200], labels[:200], scaled[200:]), wanted)


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


def test_too_small_a_training_set_is_the_users_error():
    with pytest.raises(UserError, match="5 neighbours and there are 4"):
        knn.usable((5, 20), 4)
