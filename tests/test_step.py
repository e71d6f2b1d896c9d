"""The update: accumulation, skipping, averaging, and the same numbers on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from flax import nnx

from nepa_jax.base.trees import named_leaves
from nepa_jax.mesh import make_mesh, put_batch
from nepa_jax.objectives.base import load_objective
from nepa_jax.optim import learning_rate
from nepa_jax.step import abstract_state, create_state, moving_average, stays_finite


def run(method: str, steps: int = 2, batch_size: int = 8, **changes: str):
    """A few steps on all devices; final state and the metrics of each step."""
    config = small.resolved(method, data__batch_size=str(batch_size), **changes)
    objective = load_objective(config.objective.name)
    mesh = make_mesh(config)
    state, update = small.started(config, objective, mesh)
    history = []
    for step in range(steps):
        state, metrics = update(
            state, put_batch({"image": small.images(batch_size, seed=step)}, mesh)
        )
        history.append(jax.device_get(metrics))
    return state, history


def leaves(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def assert_close(a, b, rtol: float) -> None:
    a, b = leaves(a), leaves(b)
    for name, value in a.items():
        scale = max(np.abs(value).max(), 1e-6)
        np.testing.assert_allclose(b[name] / scale, value / scale, atol=rtol, err_msg=name)


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_accumulation_gives_the_same_step_as_the_whole_batch(method):
    """Masks, dropped branches and coordinates too: an image's draws do not depend on its microbatch.

    Nor does anything that is logged: spreads and the like are computed from means of all images.
    """
    _, whole = run(method, batch_size=16)
    _, parts = run(method, batch_size=16, optim__accum_steps="2")
    for one, two in zip(whole, parts, strict=True):
        assert one.keys() == two.keys() and len(one) > 8
        for name, value in one.items():
            rtol = 1e-5 if name == "loss" else 1e-4
            np.testing.assert_allclose(two[name], value, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(method):
    config = small.resolved(method)
    objective = load_objective(config.objective.name)
    mesh = make_mesh(config)
    state, update = small.started(config, objective, mesh)
    batch = put_batch({"image": small.images(8)}, mesh)
    state, _ = update(state, batch)
    before = leaves((state.model, state.opt_state, state.ema))
    poisoned = put_batch({"image": np.full((8, 16, 16, 3), np.nan, np.float32)}, mesh)
    for count in (1, 2):
        state, metrics = update(state, poisoned)
        assert not np.isfinite(metrics["loss"])
        assert int(metrics["skipped_in_a_row"]) == count
    after = leaves((state.model, state.opt_state, state.ema))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    state, metrics = update(state, batch)
    assert int(metrics["skipped_steps"]) == 2 and int(metrics["skipped_in_a_row"]) == 0
    assert int(state.step) == 4
    # Three updates tried before this one, one of them kept: that is what the schedule goes by.
    np.testing.assert_allclose(metrics["lr"], learning_rate(config)(1))
    assert {int(count) for _, count in optax.tree.get_all_with_path(state.opt_state, "count")} == {
        2
    }


def test_an_update_that_is_not_finite_changes_nothing_though_loss_and_gradient_are():
    config = small.resolved("nepa")
    config.optim.b1 = 1.0  # the moments' correction divides by 1 - b1
    objective, mesh = load_objective(config.objective.name), make_mesh(config)
    state, update = small.started(config, objective, mesh)
    before = leaves((state.model, state.opt_state, state.ema))
    state, metrics = update(state, put_batch({"image": small.images(8)}, mesh))
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert int(metrics["skipped_steps"]) == 1
    after = leaves((state.model, state.opt_state, state.ema))
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_an_objectives_own_state_may_hold_infinities_but_not_get_any():
    old = {"queue": jnp.array([1.0, -jnp.inf]), "head": jnp.int32(3), "key": jax.random.key(0)}
    assert stays_finite(None, None) and stays_finite(old, old)
    assert stays_finite(old, old | {"queue": jnp.array([1.0, 2.0])})
    for lost in (jnp.nan, jnp.inf):
        assert not stays_finite(old, old | {"queue": jnp.array([lost, -jnp.inf])})


def test_the_average_follows_the_model():
    config = small.resolved(
        "nepa", optim__ema_decay="0.75", optim__lr="1e-2", optim__base_lr="none"
    )
    objective = load_objective(config.objective.name)
    mesh = make_mesh(config)
    state, update = small.started(config, objective, mesh)
    for seed in range(4):
        state, _ = update(state, put_batch({"image": small.images(8, seed)}, mesh))
        model = leaves(state.model)
        if seed == 0:  # a copy; what the weights were before it is forgotten
            average = model
        else:
            average = {name: 0.75 * old + 0.25 * model[name] for name, old in average.items()}
        assert_close(average, leaves(state.ema), rtol=1e-5)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_an_average_keeps_what_is_constant_and_follows_the_closed_form(decay):
    """In float32 over 20,000 steps: decay and 1 - decay do not add up to 1 there."""
    steps, seen = 20_000, np.random.default_rng(0).normal(1.0, 0.1, (20_000, 8)).astype(np.float32)

    @jax.jit
    def averaged(values):
        follow = lambda average, value: (moving_average(average, value, decay), None)  # noqa: E731
        return jax.lax.scan(follow, values[0], values)[0]

    constant = np.broadcast_to(seen[0], seen.shape)
    np.testing.assert_array_equal(averaged(jnp.asarray(constant)), seen[0])
    weights = (1.0 - decay) * decay ** np.arange(steps - 1, -1, -1.0)
    wanted = decay**steps * seen[0] + weights @ seen.astype(np.float64)
    np.testing.assert_allclose(averaged(jnp.asarray(seen)), wanted, rtol=1e-5)


def test_the_state_is_a_function_of_the_seed():
    config = small.resolved("nepa")
    objective, mesh = load_objective(config.objective.name), make_mesh(config)
    target = abstract_state(config, objective, mesh)
    first, second = (leaves(create_state(config, objective, target)) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = leaves(create_state(small.resolved("nepa", run__seed="7"), objective, target))
    assert not np.array_equal(
        first["model/vit/patch_embed/kernel"], other["model/vit/patch_embed/kernel"]
    )


@pytest.mark.parametrize(
    ("kept", "usual", "is_skipped"),
    [(200, 1e-4, True), (200, 1e4, False), (50, 1e-4, False)],
    ids=["a spike", "an ordinary step", "too early to tell"],
)
def test_a_gradient_much_longer_than_usual_is_skipped(kept, usual, is_skipped):
    config = small.resolved("nepa", optim__spike_factor="10.0")
    objective, mesh = load_objective(config.objective.name), make_mesh(config)
    state, update = small.started(config, objective, mesh)
    state.step = jax.device_put(np.int32(kept), state.step.sharding)
    state.grad_norm_mean = jax.device_put(np.float32(usual), state.grad_norm_mean.sharding)
    before = leaves(state.opt_state)
    state, metrics = update(state, put_batch({"image": small.images(8)}, mesh))
    assert int(metrics["skipped_steps"]) == is_skipped
    same = all(np.array_equal(before[name], leaf) for name, leaf in leaves(state.opt_state).items())
    assert same == is_skipped == (float(state.grad_norm_mean) == np.float32(usual))


def test_the_usual_length_of_gradients_is_their_mean():
    state, history = run("nepa", steps=3)
    norms = [entry["grad_norm"] for entry in history]
    np.testing.assert_allclose(state.grad_norm_mean, np.mean(norms), rtol=1e-6)


@pytest.mark.parametrize("remat", ["names", "dots", "full"])
def test_rematerialisation_changes_no_result(remat):
    _, plain = run("mae")
    _, saved = run("mae", run__remat=remat)
    np.testing.assert_allclose(saved[-1]["loss"], plain[-1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(saved[-1]["grad_norm"], plain[-1]["grad_norm"], rtol=1e-4)


def test_drop_path_drops_whole_branches_and_only_in_training():
    config = small.resolved("nepa", model__drop_path_rate="0.5", model__layer_scale_init="1.0")
    objective = load_objective(config.objective.name)
    model = objective.init_model(config, nnx.Rngs(0))
    batch = {"image": jnp.asarray(small.images(8)), "row": jnp.arange(8)}
    losses = [
        float(objective.loss(model, None, batch, jax.random.key(seed))[0]) for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]
    a, b = (objective.encode(model, batch["image"]).patches for _ in range(2))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_bfloat16_products_keep_float32_state_and_follow_float32(method):
    state, low = run(method, run__dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves((state.model, state.opt_state, state.ema))} <= {
        np.dtype("float32"),
        np.dtype("int32"),
    }
    _, full = run(method)
    np.testing.assert_allclose(low[0]["loss"], full[0]["loss"], atol=0.02)
