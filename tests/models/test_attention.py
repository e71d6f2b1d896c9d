"""Attention: one function, whatever its form, and each platform gets its own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import BARS, assert_same_form
from jax.sharding import AbstractDevice, AbstractMesh, NamedSharding, PartitionSpec

from nepa_jax.models.attention import attend, attend_heads_first
from nepa_jax.models.platform import platform

# Images, tokens, heads, width of a head: halves that differ, a single token, lengths of recipes.
SHAPES = [
    (2, 1, 2, 8),
    (3, 9, 1, 1),
    (2, 7, 3, 5),
    (2, 50, 2, 128),
    (1, 65, 3, 32),
    (1, 257, 2, 64),
]


def qkv(shape, dtype="float32"):
    return [jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 3)]


def plain(causal):
    return jax.jit(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=causal))


def heads_first(causal):
    return jax.jit(lambda q, k, v: attend_heads_first(q, k, v, causal))


def exact(causal, grad, *operands):
    """The formula and its gradients in float64."""
    q, k, v, g = (np.asarray(x, np.float64).swapaxes(1, 2) for x in (*operands, grad))
    scale, hidden = q.shape[-1] ** -0.5, np.triu(np.ones((q.shape[2],) * 2, bool), 1) & causal
    scores = np.where(hidden, -np.inf, q @ k.swapaxes(2, 3) * scale)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    by_p = g @ v.swapaxes(2, 3)
    by_scores = p * (by_p - (p * by_p).sum(-1, keepdims=True)) * scale
    found = p @ v, by_scores @ k, by_scores.swapaxes(2, 3) @ q, p.swapaxes(2, 3) @ g
    return [x.swapaxes(1, 2) for x in found]


def assert_exact(causal, *operands, bar=BARS["float32"]):
    """Values and gradients."""

    @jax.jit
    def both(grad, *operands):
        value, pull_back = jax.vjp(lambda *x: attend_heads_first(*x, causal), *operands)
        return value, *pull_back(grad)

    grad = jax.random.normal(jax.random.key(1), operands[0].shape)
    found = both(grad, *operands)
    for f, w in zip(found, exact(causal, grad, *operands), strict=True):
        np.testing.assert_allclose(f, w, rtol=0, atol=bar * np.abs(w).max())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_heads_first_is_attention(shape, causal):
    assert_exact(causal, *qkv(shape))


@pytest.mark.parametrize("causal", [False, True])
def test_in_half_precision_it_is_plain_attention(causal):
    assert_same_form(heads_first(causal), plain(causal), qkv((2, 65, 2, 32), "bfloat16"))


def test_large_scores_stay_finite():
    q, k, v = qkv((2, 9, 2, 16))
    assert_exact(True, 8.0 * q, 8.0 * k, v, bar=1e-4)  # scores are rounded at 2e-5


def test_a_token_sees_nothing_of_later_ones():
    q, k, v = qkv((1, 10, 2, 4))
    of_values = jax.jit(jax.jacobian(lambda v: attend_heads_first(q, k, v, True)[0, :, 0, 0]))
    by_values = of_values(v)[:, 0, :, 0, 0]
    np.testing.assert_array_equal(np.triu(by_values, 1), 0.0)
    assert (np.abs(np.tril(by_values)).sum(axis=1) > 0).all()


def test_it_maps_over_rows_and_runs_in_a_scan():
    stack = jnp.stack(qkv((4, 9, 2, 8)))  # three of them, each its own queries, keys and values

    def grad(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(attend_heads_first(x, x, x, True))))(x)

    alone = jnp.stack([jax.jit(grad)(x) for x in stack])
    scanned = jax.jit(lambda stack: jax.lax.scan(lambda c, x: (c, grad(x)), 0, stack)[1])
    np.testing.assert_allclose(jax.jit(jax.vmap(grad))(stack), alone, atol=2e-6)
    np.testing.assert_allclose(scanned(stack), alone, atol=2e-6)


def test_images_and_heads_on_different_devices_move_nothing():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"))
    sharding = NamedSharding(mesh, PartitionSpec("data", None, "tensor"))
    operands = [jax.device_put(x, sharding) for x in qkv((4, 9, 2, 8))]

    def grads(*x):
        return jax.grad(lambda *x: jnp.sum(jnp.sin(attend_heads_first(*x, True))), (0, 1, 2))(*x)

    program = jax.jit(grads).lower(*operands).compile()
    assert not any(word in program.as_text() for word in ("all-gather", "all-to-all", "permute("))
    for found, wanted in zip(program(*operands), jax.jit(grads)(*qkv((4, 9, 2, 8))), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-6)


def kept(function, *operands):
    """Shapes that the backward pass takes from the forward one."""
    pull_back = jax.eval_shape(lambda *x: jax.vjp(function, *x)[1], *operands)
    return [leaf.shape for leaf in jax.tree.leaves(pull_back)]


def test_the_cpu_keeps_no_probabilities():
    operands = qkv((2, 30, 3, 4))
    assert any(shape[-2:] == (30, 30) for shape in kept(plain(True), *operands))
    assert all(np.prod(shape) <= 2 * 30 * 3 * 4 for shape in kept(heads_first(True), *operands))


def on(name: str) -> AbstractMesh:
    device = AbstractDevice(device_kind="any", num_cores=None, platform=name)
    return AbstractMesh((1,), ("data",), abstract_device=device)


def test_the_form_is_that_of_the_devices_the_program_is_for():
    operands = qkv((2, 30, 3, 4))

    def program(function):
        return str(jax.make_jaxpr(lambda *x: function(*x))(*operands))  # a new trace each time

    assert platform() == jax.default_backend() == "cpu"
    assert "custom_vjp_call" in program(partial(attend, causal=True))
    with jax.sharding.use_abstract_mesh(on("tpu")):
        assert platform() == "tpu"
        assert program(partial(attend, causal=True)) == program(
            partial(jax.nn.dot_product_attention, is_causal=True)
        )
