"""LayerNorm in float32 with the two-pass variance of PyTorch, and a derivative of its own.

The backward pass reads two numbers a row, ``norm_stats``, where plain differentiation goes over the
rows again to get them.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name


class Statistics(NamedTuple):
    """Of every row, float32 [..., 1]."""

    mean: jax.Array
    inverse_std: jax.Array


class Affine(NamedTuple):
    """What follows the norm, each float32 [D] or left out."""

    scale: jax.Array | None
    bias: jax.Array | None

    def __call__(self, normed: jax.Array) -> jax.Array:
        scaled = normed if self.scale is None else normed * self.scale
        return scaled if self.bias is None else scaled + self.bias


def statistics(x: jax.Array, eps: float) -> Statistics:
    """Over the last axis of [..., D]."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return Statistics(
        checkpoint_name(mean, "norm_stats"),
        checkpoint_name(jax.lax.rsqrt(variance + eps), "norm_stats"),
    )


def standardize(x: jax.Array, stats: Statistics) -> jax.Array:
    """Rows [..., D] with mean 0 and variance 1, float32."""
    return (x.astype(jnp.float32) - stats.mean) * stats.inverse_std


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def normalize(x: jax.Array, affine: Affine, eps: float) -> jax.Array:
    """LayerNorm over the last axis: [..., D] -> float32 [..., D]."""
    return affine(standardize(x, statistics(x, eps)))


NormResiduals = tuple[jax.Array, Affine, Statistics]


def _normalize_forward(x: jax.Array, affine: Affine, eps: float) -> tuple[jax.Array, NormResiduals]:
    stats = statistics(x, eps)
    return affine(standardize(x, stats)), (x, affine, stats)


def normalize_backward(
    eps: float, residuals: NormResiduals, grad: jax.Array
) -> tuple[jax.Array, Affine]:
    """Gradients of the input and of what follows the norm; ``grad`` is float32 [..., D]."""
    x, affine, stats = residuals
    rows = tuple(range(x.ndim - 1))
    normed = standardize(x, stats)
    by_affine = Affine(
        None if affine.scale is None else jnp.sum(grad * normed, rows),
        None if affine.bias is None else jnp.sum(grad, rows),
    )
    if affine.scale is not None:
        grad = grad * affine.scale
    along = normed * jnp.mean(grad * normed, axis=-1, keepdims=True)
    by_x = stats.inverse_std * (grad - jnp.mean(grad, axis=-1, keepdims=True) - along)
    return by_x.astype(x.dtype), by_affine


normalize.defvjp(_normalize_forward, normalize_backward)


class LayerNorm(nnx.LayerNorm):
    """:func:`normalize` with its parameters."""

    @property
    def affine(self) -> Affine:
        return Affine(
            self.scale[...] if self.use_scale else None, self.bias[...] if self.use_bias else None
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return normalize(x, self.affine, self.epsilon)


def layer_norm(
    dim: int, eps: float, rngs: nnx.Rngs, *, scale: bool = True, bias: bool = True
) -> LayerNorm:
    """A norm over ``dim`` numbers whose parameters carry their axis' name."""
    return LayerNorm(
        dim, epsilon=eps, dtype=jnp.float32, use_scale=scale, use_bias=bias,
        scale_metadata={"axes": ("norm",)}, bias_metadata={"axes": ("norm",)}, rngs=rngs,
    )  # fmt: skip
