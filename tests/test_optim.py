"""The table of learning rates and decay, held to the released fine-tuning codes'."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
from flax import nnx
from golden import mae_config, nepa_config, read_case
from ml_collections import ConfigDict
from variants import export_arrays

from nepa_jax import optim
from nepa_jax.base.trees import named_leaves
from nepa_jax.config import base_config
from nepa_jax.formats.tables import FORMATS
from nepa_jax.objectives import supervised
from nepa_jax.objectives.base import abstract_model

NEPA_REST = dict(
    hidden_size=16, num_attention_heads=2, intermediate_size=32, rope_theta=100.0, image_size=16,
    patch_size=8, qkv_bias=True, qk_norm=True, qk_norm_bias=False, layer_norm_eps=1e-12,
    is_causal=False, num_labels=5,
)  # fmt: skip


def classifier(model: dict, optimizer: dict, schedule: dict) -> ConfigDict:
    """The resolved config of a released code's classifier, and of how it is trained."""
    config = base_config()
    parts = nepa_config(NEPA_REST | model) if "num_hidden_layers" in model else mae_config(model)
    with config.ignore_type():
        config.model.update(parts["model"])
        config.objective = ConfigDict(dict(parts["objective"], name=supervised.__name__))
        config.run.dtype = "float32"
        config.optim.update(optimizer)
        config.schedule = ConfigDict(schedule)
    return config


def of_nepa(case: dict) -> ConfigDict:
    options = case["options"]
    schedule = options["lr_scheduler_kwargs"]
    optimizer = dict(
        lr=options["lr"],
        head_lr=options["head_lr"],
        weight_decay=options["weight_decay"],
        layer_decay=options["llrd"],
        layer_decay_end=schedule.get("llrd_end"),
        layer_warmup=schedule["custom_scheduler_type"] == "llrd_cosine_warmup",
        freeze_patch_embed=case["freeze_embed"],
    )
    steps = dict(total_steps=case["steps"], warmup_steps=case["warmup_steps"], final_lr=0.0)
    return classifier(case["model"], optimizer, steps)


def of_mae(case: dict) -> ConfigDict:
    schedule = case["schedule"]
    optimizer = dict(
        lr=schedule["lr"],
        weight_decay=case["weight_decay"],
        layer_decay=case["layer_decay"],
        layer_decay_offset=1,
        decay_tokens=False,
    )
    epoch = schedule["steps_per_epoch"]
    steps = dict(
        total_steps=schedule["epochs"] * epoch,
        warmup_steps=schedule["warmup_epochs"] * epoch,
        final_lr=schedule["min_lr"],
    )
    return classifier(dict(layer_norm_eps=1e-6) | case["model"], optimizer, steps)


CASES = [(name, key) for name, keys in {
    "nepa_lrd": ("d3", "base12", "ramp12", "plain3"), "mae_lrd": ("d3", "base12"),
}.items() for key in keys]  # fmt: skip


def opened(name: str, key: str) -> tuple[ConfigDict, nnx.Module, dict, dict[str, np.ndarray]]:
    """Our config and model of a case, its groups, and its arrays."""
    meta, arrays = read_case("golden2", name)
    case = meta["config"][key]
    config = (of_nepa if name == "nepa_lrd" else of_mae)(case)
    return config, abstract_model(supervised.init_model, config), case, arrays


def theirs(model: nnx.Module, name: str) -> dict[str, np.ndarray]:
    return export_arrays(model, FORMATS[name.partition("_")[0]])


@pytest.mark.parametrize(("name", "key"), CASES)
def test_every_step_has_the_released_learning_rate_in_every_layer(name, key):
    """Also after the end of the run, and by the names of the released code: a rate that goes to
    another layer of the stack would show."""
    config, model, case, arrays = opened(name, key)
    ones = jax.tree.map(lambda leaf: -jnp.ones(leaf.shape), model)
    update = jax.jit(optim.scale_by_rates(config).update)
    for step, wanted in enumerate(arrays[f"out.{key}.lr"]):
        rates, _ = update(ones, optax.ScaleByScheduleState(jnp.int32(step)))
        found = theirs(rates, name)
        trained = set()
        for group, rate in zip(case["groups"], wanted, strict=True):
            for parameter in group["params"]:
                assert np.ptp(found[parameter]) == 0, parameter
                np.testing.assert_allclose(
                    found[parameter].flat[0],
                    rate,
                    rtol=3e-6,
                    atol=2e-10,
                    err_msg=f"{step} {parameter}",
                )
            trained |= set(group["params"])
        assert all(not found[parameter].any() for parameter in found.keys() - trained)


@pytest.mark.parametrize(("name", "key"), CASES)
def test_the_released_groups_decay(name, key):
    config, model, case, _ = opened(name, key)
    mask = optim.by_name(
        lambda parameter, leaf: np.full(leaf.shape, optim.decays(config, parameter), np.float32),
        model,
    )
    found = theirs(mask, name)
    for group in case["groups"]:
        for parameter in group["params"]:
            assert found[parameter].all() == bool(group["weight_decay"]), parameter
            assert found[parameter].any() == bool(group["weight_decay"]), parameter


@pytest.mark.parametrize(("name", "key"), CASES)
def test_the_table_has_every_parameter_once_and_the_released_groups(name, key):
    config, model, case, _ = opened(name, key)
    rows = optim.table(config, model)
    assert sum(row.parameters for row in rows) == sum(leaf.size for leaf in jax.tree.leaves(model))
    depth = config.model.depth
    in_rows = [(parameter, row.place) for row in rows for parameter in row.names]
    wanted = [
        (parameter, place)
        for parameter in named_leaves(model)
        for place in optim.places(parameter, depth)
    ]
    assert sorted(in_rows) == sorted(wanted)
    found = {(row.place, round(row.peak_lr, 12), row.weight_decay) for row in rows if row.peak_lr}
    released = {
        (
            group.get("llrd_scale"),
            group["weight_decay"],
            group.get("initial_lr"),
            group.get("lr_scale"),
        )
        for group in case["groups"]
    }
    # The released codes put places of one rate and decay together: top and head of MAE, and NEPA's
    # pooled norm with the top block.
    assert len({each[1:] for each in found}) == len(released)


def test_frozen_parameters_stay_and_no_norm_counts_them():
    config, model, _, _ = opened("nepa_lrd", "d3")
    grads = optim.trained_alone(config, jax.tree.map(lambda leaf: jnp.ones(leaf.shape), model))
    for parameter, grad in named_leaves(grads).items():
        assert bool(grad.any()) != parameter.startswith("vit/patch_embed/"), parameter
    weights = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5), model)
    optimizer = optim.make_optimizer(config)
    state = optimizer.init(weights)
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(grads, state, weights)
        weights = optax.apply_updates(weights, updates)
    for parameter, weight in named_leaves(weights).items():
        assert bool((weight == 0.5).all()) == parameter.startswith("vit/patch_embed/"), parameter


def test_the_ramp_of_the_paper_is_a_straight_line():
    config, _, _, _ = opened("nepa_lrd", "ramp12")
    config.optim.layer_decay_ramp = "linear"
    found = [float(optim.layer_decay(config, step)) for step in (0, 10, 20, 40)]
    np.testing.assert_allclose(found, [0.35, 0.5125, 0.675, 1.0], rtol=1e-6)


def test_pretraining_has_one_rate():
    config = small.resolved("mae")
    rows = optim.table(
        config, abstract_model(small.load_objective(config.objective.name).init_model, config)
    )
    assert {row.peak_lr for row in rows} == {config.optim.lr}
    assert {row.warmup_steps for row in rows} == {2}
