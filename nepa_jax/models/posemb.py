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


def resample(
    table: np.ndarray, grid: tuple[int, int], new_grid: tuple[int, int], rule: str
) -> np.ndarray:
    """A patch table [N, D] on another grid: float32 [N', D].

    ``bicubic`` is PyTorch's interpolate without corner alignment (Transformers, MAE's code),
    ``bicubic_antialias`` the same with antialiasing (timm), ``linear`` aligns corners (big_vision).
    """
    plane = table.reshape(*grid, -1)
    if rule == "bicubic_antialias":
        shape = (*new_grid, plane.shape[-1])
        plane = np.asarray(jax.image.resize(plane, shape, method="bicubic"))
    else:
        weights = cubic_weights if rule == "bicubic" else linear_weights
        rows, columns = (weights(old, new) for old, new in zip(grid, new_grid, strict=True))
        plane = np.einsum("ai,bj,ijd->abd", rows, columns, plane)
    return plane.reshape(-1, table.shape[1]).astype(np.float32)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """Keys' cubic convolution with a = -0.75, borders repeated: [new, old]."""
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for tap in range(-1, 3):
        place = np.floor(centre) + tap
        x = np.abs(centre - place)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        column = np.clip(place, 0, old - 1).astype(int)
        np.add.at(weights, (np.arange(new), column), np.where(x <= 1, near, far))
    return weights


def linear_weights(old: int, new: int) -> np.ndarray:
    """Linear interpolation with the first and last points kept: [new, old]."""
    places = np.linspace(0, old - 1, new)
    return np.stack([np.interp(places, np.arange(old), row) for row in np.eye(old)], axis=1)
