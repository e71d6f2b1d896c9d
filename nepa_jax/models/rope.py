"""Two-dimensional rotary position embedding, as in NEPA's released code (theta 100, [-1, 1] axes)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


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
    """Rotates queries or keys [B, T, H, head_dim]; element i pairs with i + head_dim / 2."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * table.cos[:, None] + turned * table.sin[:, None]
