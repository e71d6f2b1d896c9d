"""The linear map, whose gradients are its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nepa_jax.models.layers import affine

SHAPES = {"one axis to three": ((6,), (3, 2, 5)), "two axes to one": ((2, 3), (4,))}
BATCH = (4, 7)


def operands(shapes, dtype="float32"):
    """Input, kernel, bias, and the gradient of the output."""
    inputs, outputs = SHAPES[shapes]
    shapes = BATCH + inputs, inputs + outputs, outputs, BATCH + outputs
    keys = jax.random.split(jax.random.key(0), 4)
    x, kernel, bias, grad = map(jax.random.normal, keys, shapes)
    return x.astype(dtype), kernel, bias, grad.astype(dtype)


def gradients(x, kernel, bias, grad, reduce_dtype):
    return jax.vjp(lambda *args: affine(*args, reduce_dtype), x, kernel, bias)[1](grad)


@pytest.mark.parametrize("shapes", SHAPES)
def test_value_and_gradients_are_those_of_plain_differentiation(shapes):
    x, kernel, bias, grad = operands(shapes)

    def plain(x, kernel, bias):
        return jnp.tensordot(x, kernel, kernel.ndim - bias.ndim) + bias

    y, pull_back = jax.vjp(plain, x, kernel, bias)
    np.testing.assert_allclose(affine(x, kernel, bias, "float32"), y, rtol=1e-5, atol=1e-5)
    for found, expected in zip(
        gradients(x, kernel, bias, grad, "float32"), pull_back(grad), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("reduce_dtype", ["float32", "bfloat16"])
def test_sums_over_the_batch_are_rounded_to_the_reduce_dtype(shapes, reduce_dtype):
    x, kernel, bias, grad = operands(shapes, "bfloat16")
    rows, columns = x.reshape(28, -1), grad.reshape(28, -1)
    exact = np.asarray(rows, np.float64).T @ np.asarray(columns, np.float64)
    _, by_kernel, by_bias = gradients(x, kernel, bias, grad, reduce_dtype)
    assert by_kernel.dtype == by_bias.dtype == jnp.float32
    errors = np.abs(by_kernel.reshape(exact.shape) - exact) / np.abs(exact)
    rounded = [bool((a == a.astype(jnp.bfloat16)).all()) for a in (by_kernel, by_bias)]
    assert rounded == [reduce_dtype == "bfloat16"] * 2
    assert errors.max() < (1e-4 if reduce_dtype == "float32" else 2**-7)
