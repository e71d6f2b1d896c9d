"""Linear maps with derivatives of their own.

Gradients of parameters are sums over the batch, and so over devices, in ``reduce_dtype``: plain
differentiation would round them to the dtype of the product before devices add theirs.
"""

from functools import partial

import jax
import jax.numpy as jnp

from nepa_jax.models.platform import platform


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array, reduce_dtype: str) -> jax.Array:
    """``x · kernel + bias`` in the dtype of ``x``: [*batch, *inputs] -> [*batch, *outputs]."""
    inputs = kernel.ndim - bias.ndim
    return jnp.tensordot(x, kernel.astype(x.dtype), inputs) + bias.astype(x.dtype)


Residuals = tuple[jax.Array, jax.Array]


def _affine_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, reduce_dtype: str
) -> tuple[jax.Array, Residuals]:
    kernel = kernel.astype(x.dtype)
    return affine(x, kernel, bias, reduce_dtype), (x, kernel)


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
    outputs = grad.shape[len(batch) :]
    by_bias = _sum_over(batch, grad, reduce_dtype)
    if len(outputs) > 1:
        # Heads side by side: as an axis of its own a narrow one leaves half of a matrix unit idle.
        grad = jax.lax.optimization_barrier(grad.reshape(*grad.shape[:-2], -1))
    by_kernel = _outer(x, grad, batch, reduce_dtype)
    if len(outputs) > 1:
        by_kernel = jax.lax.optimization_barrier(by_kernel)
    by_kernel = by_kernel.reshape(x.shape[len(batch) :] + outputs)
    return by_kernel.astype(jnp.float32), by_bias.astype(jnp.float32)


def _outer(
    x: jax.Array, grad: jax.Array, batch: tuple[int, ...], reduce_dtype: str
) -> jax.Array:
    """Σ x · grad over the batch: [*inputs, outputs].

    On the CPU a product first turns its left operand over, which takes longer for a wide one than the
    product itself: the narrower stands there.
    """
    product = partial(jnp.tensordot, axes=(batch, batch), preferred_element_type=reduce_dtype)
    if platform() == "cpu" and grad.size < x.size:
        return jnp.moveaxis(product(grad, x), 0, -1)
    return product(x, grad)


def _sum_over(batch: tuple[int, ...], grad: jax.Array, reduce_dtype: str) -> jax.Array:
    """Queries, keys and values each by themselves, so that a sum joins what makes its terms."""
    if grad.ndim == len(batch) + 3:
        parts = jnp.moveaxis(grad, len(batch), 0)
        return jnp.stack([jnp.sum(part, batch, dtype=reduce_dtype) for part in parts])
    return jnp.sum(grad, batch, dtype=reduce_dtype)


affine.defvjp(_affine_forward, _affine_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def affine_scaled(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, scale: jax.Array, reduce_dtype: str
) -> jax.Array:
    """``scale · (x · kernel + bias)``, float32 [*batch, D]; scale float32 [D].

    The gradient of the scale comes from those of kernel and bias, Σ y·g = Σ kernel·(xᵀg) + bias·Σ g,
    so that the backward pass needs no y: neither kept nor computed again.
    """
    return affine(x, kernel, bias, reduce_dtype).astype(jnp.float32) * scale


ScaledResiduals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _scaled_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, scale: jax.Array, reduce_dtype: str
) -> tuple[jax.Array, ScaledResiduals]:
    return affine_scaled(x, kernel, bias, scale, reduce_dtype), (x, kernel, bias, scale)


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
