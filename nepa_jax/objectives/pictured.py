"""Pictures that an objective makes while it trains: pixels that are computed as features are."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from nepa_jax.models.vit import ViT, patchify, unpatchify

NOTHING = 217  # the gray where there is nothing to show
# Cosines from -1 to 1 as blue, white and red (ColorBrewer's RdBu, reversed).
STOPS = (-1.0, -0.5, 0.0, 0.5, 1.0)
COLORS = ((5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31))


@partial(jax.tree_util.register_dataclass, data_fields=["tiles"], meta_fields=["titles"])
@dataclass(frozen=True)
class Pictures:
    """Some tiles of each image, side by side."""

    tiles: jax.Array  # uint8 [B, tiles, H, W, 3]
    titles: tuple[str, ...]  # of the tiles; a line break makes two lines


def rgb(pixels: jax.Array) -> jax.Array:
    """uint8 [..., C] -> [..., 3]: one channel as gray, of more than three the first three."""
    channels = pixels.shape[-1]
    return jnp.repeat(pixels[..., :1], 3, axis=-1) if channels < 3 else pixels[..., :3]


def to_pixels(vit: ViT, patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """The inverse of :meth:`ViT.patches`: [B, N, P·P·C] -> uint8 [B, H, W, C], clipped."""
    images = unpatchify(patches, grid, vit.config.patch_size)
    mean, std = jnp.array(vit.config.pixel_mean), jnp.array(vit.config.pixel_std)
    return jnp.clip(jnp.round(255.0 * (images * std + mean)), 0, 255).astype(jnp.uint8)


def coloured(cosines: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """A cosine per patch [B, N] as uint8 [B, H, W, 3]; NaN is gray."""
    colors = jnp.array(COLORS, jnp.float32).T
    levels = [jnp.interp(cosines, jnp.array(STOPS), channel) for channel in colors]
    shown = jnp.where(jnp.isnan(cosines)[..., None], NOTHING, jnp.stack(levels, axis=-1))
    squares = shown.astype(jnp.uint8).reshape(-1, *grid, 3)
    return squares.repeat(patch_size, axis=1).repeat(patch_size, axis=2)


def framed(pixels: jax.Array, patch: jax.Array, patch_size: int) -> jax.Array:
    """uint8 [B, H, W, 3] with a black frame in one patch of each, int [B], in raster order."""
    _, height, width, _ = pixels.shape
    down, across = jnp.arange(height)[:, None], jnp.arange(width)
    number = (down // patch_size) * (width // patch_size) + across // patch_size
    edge = jnp.isin(down % patch_size, jnp.array([0, patch_size - 1]))
    edge |= jnp.isin(across % patch_size, jnp.array([0, patch_size - 1]))
    return jnp.where((edge & (number == patch[:, None, None]))[..., None], jnp.uint8(0), pixels)


def of_most_contrast(images: jax.Array, patch_size: int, count: int) -> jax.Array:
    """Patches of images, in raster order: int [B, count]. Flat ones would show nothing."""
    spread = jnp.std(patchify(images.astype(jnp.float32), patch_size), axis=-1)
    return jnp.sort(jax.lax.top_k(spread, min(count, spread.shape[1]))[1], axis=1)
