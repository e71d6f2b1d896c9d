"""Grids of heads: MAE's linear probe to the golden arrays, every layer and rate by itself."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nepa_jax.evals.heads import grids
from nepa_jax.evals.linear import design_of
from nepa_jax.optim import lars

GOLDEN = Path(__file__).parents[2] / "fixtures" / "golden2"
ATOL = 1.5e-5  # of 20 steps in float32; the arrays themselves are at 6e-6 to float64

design = design_of(dim=16, num_classes=6)
update_grid = jax.jit(partial(grids.update_grid, design))


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    """Twenty steps of LARS on batch norm and a linear map, by MAE's released code."""
    return dict(np.load(GOLDEN / "lars_probe20.npz"))


def rows_of(features: np.ndarray, labels: np.ndarray) -> grids.Rows:
    """Rows of one or more layers that all count."""
    return grids.Rows(jnp.asarray(features), jnp.asarray(labels, jnp.int32), jnp.ones(len(labels)))


def golden_grid(golden, layers, rates):
    """A grid whose heads all begin as the golden one."""
    grid = grids.init_grid(design, layers, rates, seed=0)
    weight = jnp.broadcast_to(golden["param.weight"], (layers, rates, 6, 16))
    bias = jnp.broadcast_to(golden["param.bias"], (layers, rates, 6))
    return replace(grid, params={**grid.params, "weight": weight, "bias": bias})


@pytest.fixture(scope="module")
def trained(golden):
    """The golden steps by the second of three rates and the second of two layers."""
    grid, losses = golden_grid(golden, 2, 3), []
    factors = jnp.array([0.1, 1.0, 10.0])
    for features, labels, rate in zip(
        golden["input.features"], golden["input.labels"], golden["input.lr"], strict=True
    ):
        rows = rows_of(np.stack([features[::-1], features]), labels)
        grid, loss = update_grid(grid, rows, factors * rate)
        losses.append(loss)
    return grid, np.stack(losses)


def test_twenty_steps_are_those_of_mae(golden, trained):
    grid, losses = trained
    head = jax.tree.map(lambda leaf: leaf[1, 1], grid)
    np.testing.assert_allclose(losses[:, 1, 1], golden["out.losses"], atol=ATOL)
    found = {
        "weight": head.params["weight"],
        "bias": head.params["bias"],
        "running_mean": head.running.mean,
        "running_var": head.running.variance,
    }
    trace = head.moments[-1].trace
    found |= {"mu.weight": trace["weight"], "mu.bias": trace["bias"]}
    for name, array in found.items():
        np.testing.assert_allclose(array, golden[f"final.{name}"], atol=ATOL, err_msg=name)


def test_scores_by_running_statistics_are_those_of_mae(golden, trained):
    head = jax.tree.map(lambda leaf: leaf[1, 1], trained[0])
    scores = grids.running_scores(design, head, golden["input.eval_features"])
    np.testing.assert_allclose(scores.T, golden["out.eval_logits"], atol=2 * ATOL)


def test_other_rates_and_layers_go_their_own_way(trained):
    losses = trained[1]
    assert np.ptp(losses[-1]) > 0.1
    assert len(np.unique(losses[-1])) == losses[-1].size


def test_lars_trusts_matrices_alone():
    params = {"matrix": jnp.full((2, 2), 3.0), "vector": jnp.full(2, 3.0)}
    grads = {"matrix": jnp.full((2, 2), 0.5), "vector": jnp.full(2, 0.5)}
    optimizer = lars(weight_decay=0.1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # |w| = 6, |g + .1 w| = |.8| = 1.6
    np.testing.assert_allclose(updates["matrix"], 0.001 * 6 / 1.6 * 0.8, rtol=1e-6)
    np.testing.assert_allclose(updates["vector"], 0.5)


@pytest.mark.parametrize("zero", ["weights", "gradient"])
def test_lars_leaves_an_update_alone_where_a_norm_is_zero(zero):
    params = {"matrix": jnp.full((2, 2), 0.0 if zero == "weights" else 3.0)}
    grads = {"matrix": jnp.full((2, 2), 0.0 if zero == "gradient" else 0.5)}
    updates, _ = lars().update(grads, lars().init(params), params)
    np.testing.assert_array_equal(updates["matrix"], grads["matrix"])


def test_rows_that_do_not_count_change_nothing(golden):
    features, labels = golden["input.features"][:1], golden["input.labels"][0]
    some = rows_of(features[:, :9], labels[:9])
    padded = rows_of(features, labels)._replace(weight=jnp.array([1.0] * 9 + [0.0] * 3))
    rates = jnp.array([1.0])
    alone, wanted = update_grid(golden_grid(golden, 1, 1), some, rates)
    grid, loss = update_grid(golden_grid(golden, 1, 1), padded, rates)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), grid, alone)
    found, wanted = (grids.evaluate_grid(design, grid, rows) for rows in (padded, some))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), found, wanted)


def test_a_head_that_diverged_is_never_right():
    scores = jnp.array([[jnp.nan] * 4, [0.0, 2.0, 1.0, 2.0], [0.0, 2.0, 1.0, 2.0]])
    places = grids.place_of(scores.T, jnp.array([0, 1, 3]))
    np.testing.assert_array_equal(places, [4, 0, 1])


def test_warm_up_then_half_a_cosine():
    schedule = grids.Schedule(warmup_steps=2, total_steps=10)
    found = [float(schedule(step)) for step in (0, 1, 2, 6, 10)]
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)
