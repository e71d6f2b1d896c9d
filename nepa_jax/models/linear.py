"""Linear maps with derivatives of their own.

Gradients of parameters are sums over the batch, and so over devices, in ``reduce_dtype``: plain
differentiation would round them to the dtype of the product before devices add theirs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from nepa_jax.models.platform import platform


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array, reduce_dtype: str) -> jax.Array:
    """``x · kernel + bias`` in the dtype of ``x``: [*batch, *inputs] -> [*batch, *outputs]."""
    return _product(x, kernel, bias)


def _product(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """The sum that ``remat=dots`` keeps. It looks into no function that has a derivative of its own."""
    product = jnp.tensordot(x, kernel.astype(x.dtype), kernel.ndim - bias.ndim)
    return checkpoint_name(product + bias.astype(x.dtype), "product")


Residuals = tuple[jax.Array, jax.Array]


def _affine_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, reduce_dtype: str
) -> tuple[jax.Array, Residuals]:
    kernel = kernel.astype(x.dtype)
    return _product(x, kernel, bias), (x, kernel)


def _affine_backward(
    reduce_dtype: str, residuals: Residuals, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel = residuals
    inputs = (x.ndim + kernel.ndim - grad.ndim) // 2
    batch = tuple(range(x.ndim - inputs))
    outputs = tuple(range(len(batch), grad.ndim)), tuple(range(inputs, kernel.ndim))
    return jnp.tensordot(grad, kernel, outputs), *_sums(x, grad, batch, reduce_dtype)


def _sums(
    x: jax.Array, grad: jax.Array, batch: tuple[int, ...], reduce_dtype: str
) -> tuple[jax.Array, jax.Array]:
    """Gradients of kernel and bias, float32."""
    by_kernel = _outer(x, grad, batch, reduce_dtype)
    by_bias = jnp.sum(grad, batch, dtype=reduce_dtype)
    return by_kernel.astype(jnp.float32), by_bias.astype(jnp.float32)


def _outer(x: jax.Array, grad: jax.Array, batch: tuple[int, ...], reduce_dtype: str) -> jax.Array:
    """Σ x · grad over the batch: [*inputs, outputs].

    On the CPU a product first turns its left operand over, which takes longer for a wide one than the
    product itself: the narrower stands there.
    """
    product = partial(jnp.tensordot, axes=(batch, batch), preferred_element_type=reduce_dtype)
    if platform() == "cpu" and grad.size < x.size:
        return jnp.moveaxis(product(grad, x), 0, -1)
    return product(x, grad)


affine.defvjp(_affine_forward, _affine_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine_parts(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, reduce_dtype: str
) -> tuple[jax.Array, ...]:
    """:func:`affine` of a kernel [D, parts, H, head_dim], as one [*batch, H, head_dim] for each part.

    What is kept of them is one array, ``qkv``, with the parts first.
    """
    return _parts(x, kernel, bias)


def _parts(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
    parts = checkpoint_name(jnp.moveaxis(_product(x, kernel, bias), -3, 0), "qkv")
    return tuple(parts[i] for i in range(len(parts)))


def _parts_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, reduce_dtype: str
) -> tuple[tuple[jax.Array, ...], Residuals]:
    kernel = kernel.astype(x.dtype)
    return _parts(x, kernel, bias), (x, kernel)


def _parts_backward(
    reduce_dtype: str, residuals: Residuals, grads: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, kernel = residuals
    batch = tuple(range(x.ndim - 1))
    # Each bias by itself, so that its sum joins what makes the terms.
    by_bias = jnp.stack([jnp.sum(grad, batch, dtype=reduce_dtype) for grad in grads])
    # Heads side by side: as an axis of its own a narrow one leaves half of a matrix unit idle, and
    # without the barrier the compiler makes it one again.
    grad = jnp.stack([grad.reshape(*grad.shape[:-2], -1) for grad in grads], -2)
    by_x = jnp.tensordot(grad, kernel.reshape(*kernel.shape[:2], -1), ((-2, -1), (1, 2)))
    by_kernel = jnp.tensordot(x, grad, (batch, batch), preferred_element_type=reduce_dtype)
    by_kernel = jax.lax.optimization_barrier(by_kernel).reshape(kernel.shape)
    return by_x, by_kernel.astype(jnp.float32), by_bias.astype(jnp.float32)


affine_parts.defvjp(_parts_forward, _parts_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def affine_scaled(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, scale: jax.Array, reduce_dtype: str
) -> jax.Array:
    """``scale · (x · kernel + bias)``, float32 [*batch, D]; scale float32 [D].

    The gradient of the scale comes from those of kernel and bias, Σ y·g = Σ kernel·(xᵀg) + bias·Σ g,
    so that the backward pass needs no y: neither kept nor computed again.
    """
    return _scaled(x, kernel, bias, scale)


def _scaled(x: jax.Array, kernel: jax.Array, bias: jax.Array, scale: jax.Array) -> jax.Array:
    return _product(x, kernel, bias).astype(jnp.float32) * scale


ScaledResiduals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _scaled_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, scale: jax.Array, reduce_dtype: str
) -> tuple[jax.Array, ScaledResiduals]:
    return _scaled(x, kernel, bias, scale), (x, kernel, bias, scale)


def _scaled_backward(
    reduce_dtype: str, residuals: ScaledResiduals, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x, kernel, bias, scale = residuals
    grad = grad.astype(x.dtype)
    by_kernel, by_bias = _sums(x, grad, tuple(range(grad.ndim - 1)), reduce_dtype)
    by_scale = jnp.sum(kernel * by_kernel, tuple(range(kernel.ndim - 1))) + bias * by_bias
    scaled = (kernel * scale).astype(x.dtype)
    by_x = jnp.tensordot(grad, scaled, (grad.ndim - 1, kernel.ndim - 1))
    return by_x, by_kernel * scale, by_bias * scale, by_scale


affine_scaled.defvjp(_scaled_forward, _scaled_backward)
