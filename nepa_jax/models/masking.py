"""Random masking of patches as in MAE (He et al. 2022, section 3 and released code)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Masking(NamedTuple):
    """Which patches stay. ``mask`` is 1 where a patch is removed."""

    ids_keep: jax.Array  # int32 [B, K], in order of noise
    ids_restore: jax.Array  # int32 [B, N], place of each patch among [kept, removed]
    mask: jax.Array  # float32 [B, N]


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """Number of visible patches, truncated in floating point as the released code does."""
    return int(num_patches * (1 - mask_ratio))


def random_masking(noise: jax.Array, mask_ratio: float) -> Masking:
    """Keeps the patches of smallest noise. ``noise``: float [B, N], one row per image."""
    keep = num_kept(noise.shape[1], mask_ratio)
    ids_shuffle = jnp.argsort(noise, axis=1)
    ids_restore = jnp.argsort(ids_shuffle, axis=1)
    return Masking(ids_shuffle[:, :keep], ids_restore, (ids_restore >= keep).astype(jnp.float32))


def gather_tokens(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Picks tokens [B, N, D] by ids [B, K] -> [B, K, D]."""
    return jnp.take_along_axis(tokens, ids[:, :, None], axis=1)
