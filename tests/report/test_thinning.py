"""What a thinned curve keeps: extremes, ends, and means for smoothing."""

import numpy as np
import pytest

from nepa_jax.report.thinning import MOST_LOST, thinned

NONE = np.zeros(0, np.int64)


def test_a_short_curve_is_left_as_it_is():
    steps = np.arange(1, 21) * 50
    found = thinned(steps, np.sqrt(steps), NONE, buckets=10)
    assert found["x"] == steps.tolist()
    np.testing.assert_allclose(found["y"], np.sqrt(steps), rtol=1e-6)
    assert found["count"] == 20 and "mean_x" not in found


@pytest.mark.parametrize("length", [21, 1_000, 99_999])
def test_extremes_and_ends_stay_where_they_were(length):
    values = np.random.default_rng(0).normal(size=length)
    values[length // 3], values[length // 2] = 50.0, -50.0
    steps = np.arange(length) * 7
    found = thinned(steps, values, NONE, buckets=10)
    assert len(found["x"]) <= 22 and found["count"] == length
    points = dict(zip(found["x"], found["y"], strict=True))
    assert points[7 * (length // 3)] == 50.0 and points[7 * (length // 2)] == -50.0
    assert found["x"][0] == 0 and found["x"][-1] == 7 * (length - 1)
    assert found["x"] == sorted(set(found["x"]))


def test_every_bucket_keeps_its_own_extremes_and_mean():
    values = np.random.default_rng(1).normal(size=600)
    found = thinned(np.arange(600), values, NONE, buckets=6)
    for number, part in enumerate(values.reshape(6, 100)):
        kept = [y for x, y in zip(found["x"], found["y"], strict=True) if x // 100 == number]
        assert min(kept) == pytest.approx(part.min(), rel=1e-6)
        assert max(kept) == pytest.approx(part.max(), rel=1e-6)
        assert found["mean_y"][number] == pytest.approx(part.mean(), rel=1e-5)
        assert found["mean_x"][number] == pytest.approx(100 * number + 49.5)


def test_what_is_no_number_is_left_out_and_its_steps_are_told():
    values = np.array([1.0, np.nan, 3.0, np.nan])
    found = thinned(np.arange(4), values, np.array([1]), buckets=10)
    assert found["x"] == [0, 2] and found["y"] == [1.0, 3.0]
    assert found["lost"] == [1] and found["lost_count"] == 1


def test_of_countless_lost_steps_some_are_told_with_both_ends():
    lost = np.arange(10_000)
    found = thinned(lost, np.full(10_000, np.nan), lost, buckets=10)
    assert len(found["lost"]) <= MOST_LOST and found["lost_count"] == 10_000
    assert found["lost"][0] == 0 and found["lost"][-1] == 9_999 and found["x"] == []
