"""Label budgets: nested, stratified, and a function of labels, fraction and seed alone."""

from itertools import pairwise

import numpy as np
import pytest

from nepa_jax.evals.subsets import BUDGETS, MOST_HELD_OUT, budget, hold_out


@pytest.fixture(scope="module")
def labels():
    """Classes of 400, 200, 37 and 3 images, mixed."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(4), (400, 200, 37, 3)))


def test_budgets_are_nested_and_stratified(labels):
    found = [budget(labels, fraction) for fraction in BUDGETS]
    for smaller, larger in pairwise(found):
        assert set(smaller) < set(larger)
    assert np.bincount(labels[found[0]]).tolist() == [4, 2, 1, 1]
    assert np.bincount(labels[found[2]]).tolist() == [40, 20, 4, 1]
    assert found[-1].tolist() == list(range(len(labels)))


def test_a_budget_is_a_function_of_its_arguments(labels):
    np.testing.assert_array_equal(budget(labels, 0.1), budget(labels.copy(), 0.1, seed=0))
    assert set(budget(labels, 0.1)) != set(budget(labels, 0.1, seed=1))
    assert budget(labels, 0.05)[:6].tolist() == [2, 30, 62, 85, 86, 125]  # and stays it


def test_held_out_images_are_a_stratified_tenth_and_never_a_class_last(labels):
    kept, held = hold_out(labels)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert np.bincount(labels[held]).tolist() == [40, 20, 4, 1]
    kept, held = hold_out(np.array([0, 1, 1]))
    assert 0 in kept and len(held) == 1


def test_of_a_large_set_no_more_is_held_out_than_chooses_well():
    labels = np.arange(400_000) % 10
    assert len(hold_out(labels)[1]) == MOST_HELD_OUT
