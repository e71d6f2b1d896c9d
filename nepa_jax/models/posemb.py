"""Absolute position tables: fixed sine-cosine (MAE) and learned, for any grid."""

import jax
import jax.numpy as jnp
import numpy as np


def sincos_table(grid: tuple[int, int], dim: int) -> np.ndarray:
    """The fixed 2-D table of MAE's released code, float32 [N, dim].

    The first half of the channels encodes the column, the second half the row; each half is
    [sin, cos] of position · 10000^(-k / (dim / 4)). The class token's row would be zero.
    """
    frequencies = 10000.0 ** -(np.arange(dim // 4) / (dim / 4))
    rows, columns = np.meshgrid(*(np.arange(n) for n in grid), indexing="ij")
    halves = [np.outer(axis.reshape(-1), frequencies) for axis in (columns, rows)]
    waves = [wave(half) for half in halves for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def resize_table(table: jax.Array, grid: tuple[int, int], new_grid: tuple[int, int]) -> jax.Array:
    """Resamples a patch table [N, D] to another grid (bicubic, antialiased; same grid: unchanged)."""
    if grid == new_grid:
        return table
    plane = table.reshape(*grid, -1)
    resized = jax.image.resize(plane, (*new_grid, plane.shape[-1]), method="bicubic")
    return resized.reshape(-1, plane.shape[-1]).astype(jnp.float32)
