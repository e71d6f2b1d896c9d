"""Two-dimensional rotary position embedding, as in NEPA's released code (theta 100, [-1, 1] axes)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nepa_jax.models.norms import (
    Affine,
    NormResiduals,
    normalize_backward,
    standardize,
    statistics,
)


class RopeTable(NamedTuple):
    """Cosine and sine of every token's angles, each float32 [T, head_dim]."""

    cos: jax.Array
    sin: jax.Array


class CoordDraw(NamedTuple):
    """One random change of the coordinates, shared by a whole batch, all float32."""

    shift: jax.Array  # [2], added to (row, column)
    jitter: jax.Array  # [2], a factor for each axis
    rescale: jax.Array  # [], one factor for both


def patch_coords(grid: tuple[int, int]) -> jax.Array:
    """Patch centres as (row, column), each axis mapped to [-1, 1]: float32 [N, 2], raster order."""
    axes = [2.0 * (jnp.arange(n, dtype=jnp.float32) + 0.5) / n - 1.0 for n in grid]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)


def draw_coords(key: jax.Array, shift: float, jitter: float, rescale: float) -> CoordDraw:
    """Draws a training-time change: shift in ±shift, factors log-uniform in [1/a, a] (1 = off)."""
    shift_key, jitter_key, rescale_key = jax.random.split(key, 3)

    def log_uniform(key: jax.Array, shape: tuple[int, ...], bound: float) -> jax.Array:
        return bound ** jax.random.uniform(key, shape, minval=-1.0, maxval=1.0)

    return CoordDraw(
        shift=shift * jax.random.uniform(shift_key, (2,), minval=-1.0, maxval=1.0),
        jitter=log_uniform(jitter_key, (2,), jitter),
        rescale=log_uniform(rescale_key, (), rescale),
    )


def move_coords(coords: jax.Array, draw: CoordDraw) -> jax.Array:
    """Applies a draw to coordinates [N, 2]."""
    return (coords + draw.shift) * draw.jitter * draw.rescale


def rope_table(coords: jax.Array, head_dim: int, base: float) -> RopeTable:
    """Angles 2π · coordinate · base^(-4j / head_dim), laid out [rows, columns, rows, columns].

    Args:
        coords: float32 [N, 2].
        head_dim: width of a head, a multiple of 4.
        base: the slowest frequency is about 1 / base.
    """
    frequencies = base ** -(jnp.arange(head_dim // 4, dtype=jnp.float32) * 4.0 / head_dim)
    angles = 2.0 * jnp.pi * coords[:, :, None] * frequencies
    angles = jnp.tile(angles.reshape(coords.shape[0], -1), (1, 2))
    return RopeTable(jnp.cos(angles), jnp.sin(angles))


def add_class_token(table: RopeTable) -> RopeTable:
    """Puts a row of angle zero in front: the class token is not rotated."""
    return RopeTable(
        jnp.pad(table.cos, ((1, 0), (0, 0)), constant_values=1.0),
        jnp.pad(table.sin, ((1, 0), (0, 0))),
    )


def rotate(x: jax.Array, table: RopeTable) -> jax.Array:
    """Rotates queries or keys [..., T, H, head_dim] -> float32; element i pairs with i + head_dim / 2."""
    return _turn(x.astype(jnp.float32), turned(x).astype(jnp.float32), table)


def _turn(x: jax.Array, quarter: jax.Array, table: RopeTable) -> jax.Array:
    return x * table.cos[:, None] + quarter * table.sin[:, None]


def turned(x: jax.Array) -> jax.Array:
    """Every pair (a, b) of the last axis as (-b, a).

    A product with a matrix of 0, 1 and -1 gives exactly that in any dtype, since each output takes one
    input; accelerators do it several times faster than cutting heads in half.
    """
    half = x.shape[-1] // 2
    matrix = jnp.kron(jnp.array([[0.0, 1.0], [-1.0, 0.0]]), jnp.eye(half)).astype(x.dtype)
    return jnp.matmul(x, matrix, precision=jax.lax.Precision.HIGHEST)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize_and_rotate(x: jax.Array, affine: Affine, table: RopeTable, eps: float) -> jax.Array:
    """LayerNorm, then :func:`rotate`: [..., T, H, head_dim] -> the same, in the dtype of ``x``.

    Computed in float32. Turning a norm's input and its parameters turns its output, so that the
    product of :func:`turned` runs in the dtype of ``x``. No gradient goes to the table.
    """
    return _rotated_forward(x, affine, table, eps)[0]


RotatedResiduals = tuple[NormResiduals, RopeTable]


def _rotated_forward(
    x: jax.Array, affine: Affine, table: RopeTable, eps: float
) -> tuple[jax.Array, RotatedResiduals]:
    stats = statistics(x, eps)
    signs = turned(jnp.ones(x.shape[-1]))
    affine_turned = Affine(
        None if affine.scale is None else signs * turned(affine.scale),
        None if affine.bias is None else turned(affine.bias),
    )
    mean_turned = stats._replace(mean=stats.mean * signs)
    quarter = affine_turned(standardize(turned(x), mean_turned))
    y = _turn(affine(standardize(x, stats)), quarter, table)
    return y.astype(x.dtype), ((x, affine, stats), table)


def _rotated_backward(
    eps: float, residuals: RotatedResiduals, grad: jax.Array
) -> tuple[jax.Array, Affine, RopeTable]:
    normed, table = residuals
    back = rotate(grad, table._replace(sin=-table.sin))
    return *normalize_backward(eps, normed, back), jax.tree.map(jnp.zeros_like, table)


normalize_and_rotate.defvjp(_rotated_forward, _rotated_backward)
