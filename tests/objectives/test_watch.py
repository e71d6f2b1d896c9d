"""Linear heads that watch: what is trained is to the bit what it is without them, whatever becomes of them."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from nepa_jax.base.trees import named_leaves
from nepa_jax.mesh import make_mesh, put_batch, replicated
from nepa_jax.objectives.base import load_objective
from nepa_jax.objectives.watch import learned, no_heads
from nepa_jax.step import TrainState, abstract_state, create_state, make_update, with_heads

CLASSES = 4
TRAINED = ("step", "model", "opt_state", "ema", "grad_norm_mean", "skipped")


def batch_of(config, step: int) -> dict[str, np.ndarray]:
    """Images whose brightness says their class."""
    labels = np.random.default_rng(step).integers(0, CLASSES, config.data.batch_size, np.int32)
    noise = small.images(config.data.batch_size, seed=step) // 4
    return {"image": noise + (labels * 48).astype(np.uint8)[:, None, None, None], "label": labels}


def run(method: str, online: bool, steps: int = 3, lr: float = 1e-3, **changes: str):
    """A few steps on all devices; the final state and the metrics of each step."""
    changes = dict(data__batch_size="16", evals__online=str(online), evals__lr=str(lr)) | changes
    config = small.resolved(method, **changes)
    objective, mesh = load_objective(config.objective.name), make_mesh(config)
    target = with_heads(abstract_state(config, objective, mesh), config, objective, CLASSES)
    state, update = create_state(config, objective, target), make_update(config, objective, target)
    assert (state.heads is not None) == online
    history = []
    for step in range(steps):
        state, metrics = update(state, put_batch(batch_of(config, step), mesh))
        history.append(jax.device_get(metrics))
    return state, history


def assert_trained_alike(one: TrainState, two: TrainState) -> None:
    for part in TRAINED:
        ours, theirs = named_leaves(getattr(one, part)), named_leaves(getattr(two, part))
        assert ours.keys() == theirs.keys()
        for name, leaf in ours.items():
            np.testing.assert_array_equal(theirs[name], leaf, err_msg=f"{part}/{name}")


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("nepa", {}),
        ("mae", dict(optim__accum_steps="2")),
        ("nepa", dict(mesh__fsdp="4", optim__accum_steps="2")),
    ],
    ids=str,
)
def test_training_is_bitwise_the_same_with_and_without_heads(method, changes):
    """On eight devices: weights, moments, averages, and all that is logged."""
    plain, without = run(method, online=False, **changes)
    seen, watched = run(method, online=True, **changes)
    assert_trained_alike(plain, seen)
    for before, after in zip(without, watched, strict=True):
        more = {name for name in after if name.startswith("eval/linear/layer_")}
        assert len(more) == 2 and after.keys() == before.keys() | more
        for name, value in before.items():
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert np.abs(seen.heads.kernel).max() > 0


def test_microbatches_give_the_heads_every_image_with_its_label():
    """In another order than the labels' they would learn noise."""
    whole, _ = run("nepa", online=True)
    parts, _ = run("nepa", online=True, optim__accum_steps="2")
    kernels = [np.ravel(state.heads.kernel) for state in (whole, parts)]
    assert np.corrcoef(*kernels)[0, 1] > 0.99
    np.testing.assert_allclose(parts.heads.mean, whole.heads.mean, rtol=1e-4, atol=1e-5)


def test_heads_that_diverge_stay_as_they_were_and_change_nothing_else():
    config = small.resolved("nepa", data__batch_size="16", evals__online="True")
    objective, mesh = load_objective(config.objective.name), make_mesh(config)
    target = with_heads(abstract_state(config, objective, mesh), config, objective, CLASSES)
    state, update = create_state(config, objective, target), make_update(config, objective, target)
    heads = jax.tree.map(lambda leaf: jnp.full_like(leaf, 3e38), state.heads)
    heads = replace(heads, count=jnp.int32(5))
    before = jax.tree.map(np.asarray, heads)
    state = replace(state, heads=jax.device_put(heads, replicated(mesh)))
    for step in range(2):
        state, metrics = update(state, put_batch(batch_of(config, step), mesh))
        assert int(metrics["skipped_steps"]) == 0
    for name, leaf in named_leaves(state.heads).items():
        np.testing.assert_array_equal(leaf, named_leaves(before)[name], err_msg=name)
    plain, _ = run("nepa", online=False, steps=2)
    assert_trained_alike(plain, state)


def test_running_statistics_are_those_of_all_images():
    """Within the window a plain mean over batches, though computed one batch after the other."""
    rng = np.random.default_rng(0)
    x = (100 + rng.normal(size=(1, 20, 16, 8)) * np.arange(1, 9)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (20, 16), np.int32)
    heads = no_heads(1, 8, CLASSES)
    for step in range(20):
        heads = learned(heads, jnp.asarray(x[:, step]), jnp.asarray(labels[step]), 1e-3)
    rows = x.astype(np.float64).reshape(-1, 8)
    np.testing.assert_allclose(heads.mean[0], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(heads.variance[0], rows.var(0), rtol=1e-4)
