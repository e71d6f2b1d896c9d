"""The residual stream, in float32 or in bfloat16 between the branches of blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from nepa_jax.models.layers import add
from nepa_jax.objectives.base import abstract_model, load_objective
from nepa_jax.plan.estimate import kept_bytes

BATCH = 4
NEEDED = {"nepa": {}, "mae": {"objective__decoder_depth": "2"}}


def gradients(method, residual_dtype, remat="none"):
    """What gives (loss, gradients by every parameter) of a small model with that stream; its shapes."""
    config = small.resolved(
        method, run__residual_dtype=residual_dtype, run__remat=remat, **NEEDED[method]
    )
    objective = load_objective(config.objective.name)
    images = np.random.default_rng(1).integers(0, 256, (BATCH, 16, 16, 3), np.uint8)
    batch = {"image": jnp.asarray(images), "row": jnp.arange(BATCH)}

    def loss(model):
        return objective.loss(model, None, batch, jax.random.key(2))[0]

    return jax.value_and_grad(loss), abstract_model(objective.init_model, config)


def filled(shapes):
    """A model with random numbers in every place."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.2, s.shape), s.dtype), shapes)


def loops(jaxpr):
    """All scans of a program, those inside of others too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        for inner in jax.tree.leaves(
            [*equation.params.values()], is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from loops(inner)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method, stacks", [("nepa", 1), ("mae", 2)])
def test_the_stream_and_its_gradient_go_from_block_to_block_in_that_dtype(method, stacks, dtype):
    function, shapes = gradients(method, dtype)
    program = jax.make_jaxpr(function)(shapes).jaxpr
    found = [out.aval for loop in loops(program) for out in loop.outvars]
    # What goes from block to block has images first; what is stacked has blocks.
    carried = [aval.dtype for aval in found if aval.ndim == 3 and aval.shape[0] == BATCH]
    assert carried == [jnp.dtype(dtype)] * 2 * stacks


@pytest.mark.parametrize("method, remat", [("nepa", "names"), ("mae", "none")])
def test_a_bfloat16_stream_changes_loss_and_gradients_by_its_rounding(method, remat):
    results = []
    for dtype in ("float32", "bfloat16"):
        function, shapes = gradients(method, dtype, remat)
        results.append(jax.jit(function)(filled(shapes)))
    (loss, wanted), (found_loss, found) = results
    assert found_loss.dtype == jnp.float32 and found_loss != loss
    np.testing.assert_allclose(found_loss, loss, rtol=2e-2)
    for f, w in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert f.dtype == jnp.float32
        assert np.linalg.norm(f - w) <= 2e-2 * np.linalg.norm(w)


def test_branches_are_added_in_float32_and_rounded_once():
    stream, branch = jnp.array([1.0, -1.0], jnp.bfloat16), jnp.array([2**-9 + 2**-15] * 2)
    np.testing.assert_array_equal(add(stream, branch), jnp.array([1.0, -1.0 + 2**-8]))
    assert add(stream, branch).dtype == jnp.bfloat16


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_less_is_kept_of_a_bfloat16_stream_and_plans_know(method):
    whole, half = (
        kept_bytes(small.resolved(method, run__residual_dtype=dtype), "full")
        for dtype in ("float32", "bfloat16")
    )
    assert half < 0.9 * whole
