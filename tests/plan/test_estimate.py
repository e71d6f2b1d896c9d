"""The formula: exact for the state, of the right size for activations, and it says what does not fit."""

import jax
import pytest
import small

from nepa_jax.mesh import make_mesh
from nepa_jax.objectives.base import load_objective
from nepa_jax.plan.chips import CHIPS, Topology
from nepa_jax.plan.estimate import (
    abstract_mesh,
    device_bytes,
    estimate,
    kept_bytes,
    state_bytes,
    step_bytes,
)
from nepa_jax.step import abstract_state, create_state

V5E = Topology("v5e:2x4", CHIPS["v5e"], 8)


def state_of(config):
    objective = load_objective(config.objective.name)
    return objective, abstract_state(config, objective, abstract_mesh(config, 8))


def test_the_state_is_what_really_lies_on_a_device():
    config = small.resolved("mae", mesh__fsdp="4", optim__ema_decay="0.9")
    objective, described = state_of(config)
    made = create_state(config, objective, abstract_state(config, objective, make_mesh(config)))
    first = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(made)]
    assert device_bytes(described) == sum(first)
    parts = state_bytes(described)
    assert parts["average"] == parts["parameters"] and parts["extra"] == 0
    assert 2 * parts["parameters"] <= parts["optimizer"] < 2.1 * parts["parameters"]


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_remat_keeps_less_and_a_sharded_state_takes_less(method):
    kept = [kept_bytes(small.resolved(method), remat) for remat in ("none", "names", "full")]
    assert kept == sorted(kept, reverse=True) and len({*kept}) == 3
    whole, shared = (small.resolved(method, mesh__fsdp=fsdp) for fsdp in "18")
    assert device_bytes(state_of(shared)[1]) < 0.3 * device_bytes(state_of(whole)[1])


def test_every_layer_keeps_as_much():
    two, three, four = (
        kept_bytes(config, "none")
        for config in (small.resolved("nepa", model__depth=depth) for depth in "234")
    )
    assert four - three == three - two > 0.2 * two


def test_microbatches_share_the_memory_of_activations():
    whole, parts = (
        step_bytes(config, state_of(config)[1])
        for config in (small.resolved("nepa", data__batch_size="64", optim__accum_steps=n) for n in "14")
    )  # fmt: skip
    assert whole["activations"] == 4 * parts["activations"]
    assert 2 * whole["gradients"] == parts["gradients"]


def test_a_plan_by_formula_is_labelled_and_adds_up():
    config = small.resolved("nepa", data__batch_size="64")
    plan = estimate(config, V5E)
    assert plan.by == "formula" and plan.program_flops is None and plan.fits
    assert plan.hbm_gib == pytest.approx(sum(plan.memory_gib.values()))
    flops = load_objective(config.objective.name).describe(config).flops * 64
    assert plan.model_flops == flops
    assert plan.est_mfu == pytest.approx(flops / (plan.est_step_ms / 1e3 * 8 * 197e12))
    assert 0 < plan.est_mfu < 1
    assert not estimate(config, Topology("v5e:2x4", CHIPS["v5e"]._replace(hbm_gib=1e-6), 8)).fits
