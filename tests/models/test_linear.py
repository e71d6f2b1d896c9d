"""Linear maps, whose gradients are their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import assert_same_form

from nepa_jax.models.linear import affine, affine_parts, affine_scaled

SHAPES = {"one axis to three": ((6,), (3, 2, 5)), "two axes to one": ((2, 3), (4,))}
BATCH = (4, 7)


def operands(shapes, dtype="float32"):
    """Input, kernel, bias, and the gradient of the output."""
    inputs, outputs = SHAPES[shapes]
    shapes = BATCH + inputs, inputs + outputs, outputs, BATCH + outputs
    keys = jax.random.split(jax.random.key(0), 4)
    x, kernel, bias, grad = map(jax.random.normal, keys, shapes)
    return x.astype(dtype), kernel, bias, grad.astype(dtype)


def plain(x, kernel, bias):
    return jnp.tensordot(x, kernel.astype(x.dtype), kernel.ndim - bias.ndim) + bias.astype(x.dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_affine_is_that_of_plain_differentiation(shapes, dtype):
    assert_same_form(lambda *args: affine(*args, "float32"), plain, operands(shapes, dtype)[:3])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_are_those_of_the_whole_map(dtype):
    def taken_apart(x, kernel, bias):
        return tuple(jnp.moveaxis(plain(x, kernel, bias), -3, 0))

    operand = operands("one axis to three", dtype)[:3]
    assert_same_form(lambda *args: affine_parts(*args, "float32"), taken_apart, operand)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scale_after_the_map_gets_its_gradient_without_the_output(dtype):
    def scaled_after(x, kernel, bias, scale):
        return plain(x, kernel, bias).astype(jnp.float32) * scale

    scale = jnp.array([1.0, 1e-5, -0.5, 2.0])
    operand = (*operands("two axes to one", dtype)[:3], scale)
    assert_same_form(lambda *args: affine_scaled(*args, "float32"), scaled_after, operand)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("reduce_dtype", ["float32", "bfloat16"])
def test_sums_over_the_batch_are_rounded_to_the_reduce_dtype(shapes, reduce_dtype):
    x, kernel, bias, grad = operands(shapes, "bfloat16")
    rows, columns = x.reshape(28, -1), grad.reshape(28, -1)
    exact = np.asarray(rows, np.float64).T @ np.asarray(columns, np.float64)
    form = affine_parts if bias.ndim > 1 else affine
    pull_back = jax.vjp(lambda *args: form(*args, reduce_dtype), x, kernel, bias)[1]
    _, by_kernel, by_bias = pull_back(tuple(jnp.moveaxis(grad, -3, 0)) if bias.ndim > 1 else grad)
    assert by_kernel.dtype == by_bias.dtype == jnp.float32
    errors = np.abs(by_kernel.reshape(exact.shape) - exact) / np.abs(exact)
    rounded = [bool((a == a.astype(jnp.bfloat16)).all()) for a in (by_kernel, by_bias)]
    assert rounded == [reduce_dtype == "bfloat16"] * 2
    assert errors.max() < (1e-4 if reduce_dtype == "float32" else 2**-7)
