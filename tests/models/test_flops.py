"""The counts are those of the programs: every matrix product of a forward pass, found in its trace."""

import math

import jax
import jax.numpy as jnp
import pytest
import small

from nepa_jax.models import attention, rope
from nepa_jax.objectives.base import abstract_model, load_objective
from nepa_jax.plan.chips import PEAK_FLOPS, mfu

OBJECTIVES = {
    "nepa": ("nepa", {}),
    "nepa with swiglu": ("nepa", dict(model__mlp="swiglu")),
    "mae": ("mae", {}),
}


def macs(jaxpr: jax.extend.core.Jaxpr) -> int:
    """Multiply-adds of all matrix products, those of loops as often as they run."""
    count = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval, equation.outvars[0].aval
            count += math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda leaf: hasattr(leaf, "eqns")
        ):
            if hasattr(inner := getattr(inner, "jaxpr", inner), "eqns"):
                count += times * macs(inner)
    return count


@pytest.mark.parametrize("name", OBJECTIVES)
def test_flops_are_six_for_each_multiply_add_of_the_forward_pass(name, monkeypatch):
    # That a rotation is computed as a product is none of the model's doing.
    monkeypatch.setattr(rope, "turned", lambda x: x)
    # Nor that the CPU leaves out a part of the scores under a causal mask: all are counted, as elsewhere.
    monkeypatch.setattr(attention, "platform", lambda: "tpu")
    method, changes = OBJECTIVES[name]
    config = small.resolved(method, **changes)
    objective = load_objective(config.objective.name)
    model = abstract_model(objective.init_model, config)
    batch = {"image": jnp.zeros((2, 16, 16, 3), jnp.uint8), "row": jnp.arange(2)}
    traced = jax.make_jaxpr(lambda model: objective.loss(model, None, batch, jax.random.key(0))[0])(
        model
    )
    assert objective.describe(config).flops == 6 * macs(traced.jaxpr) / 2


def test_parameters_and_flops_of_vit_b_16_are_the_published_ones():
    """Of the supervised ViT-B/16 at 224 px: 86 million without its head, 17.6 GFLOP forward."""
    config = small.resolved(
        "nepa", model__image_size="224", model__patch_size="16", model__embed_dim="768",
        model__depth="12", model__num_heads="12", model__layer_scale_init="none",
    )  # fmt: skip
    config.objective = dict(name="", num_classes=1, pool="cls", causal=False)
    description = load_objective("nepa_jax.objectives.supervised").describe(config)
    assert description.parameters == pytest.approx(85.8e6, rel=3e-3)
    assert description.flops / 3 == pytest.approx(2 * 17.58e9, rel=1e-2)


def test_utilisation_is_a_share_of_all_devices_peak_where_it_is_known():
    peak = PEAK_FLOPS["TPU v5e"]
    assert mfu(0.4 * 16 * peak, "TPU v5e", 16) == pytest.approx(0.4)
    assert mfu(1e12, "a device nobody knows", 1) is None
