"""What MAE sees, and what it makes of it (as in He et al. 2022, figures 2 to 4)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from nepa_jax.models.masking import random_masking
from nepa_jax.models.vit import ViT, unpatchify
from nepa_jax.objectives import mae
from nepa_jax.visualize import style

RATIOS = (0.75, 0.85, 0.95)
REMOVED_SHADE = 0.55  # gray, in [0, 1]


def draw(
    model: mae.MAE, images: np.ndarray, path: str | Path, ratios: Sequence[float] = RATIOS
) -> Path:
    """Draws originals, and for each mask ratio what is left of them and what is rebuilt.

    Args:
        images: uint8 [n, H, W, 3]; one column each, eight read well.
        path: where the PNG goes.
        ratios: shares of removed patches. A smaller one keeps all that a larger one keeps.
    """
    rows = [("original", images / 255.0)]
    for ratio in ratios:
        masked, rebuilt = rebuild(model, images, ratio)
        rows += [(f"{100 * ratio:.0f} % removed", masked), ("rebuilt", rebuilt)]
    width = 1.1 * len(images) + 1.3
    made = style.figure(width, 1.1 * len(rows) + 0.7)
    for axes, (label, row) in zip(made.subplots(len(rows), 1), rows, strict=True):
        axes.imshow(style.strip(row), interpolation="nearest")
        style.bare(axes)
        style.row_label(axes, label)
    made.suptitle(_settings(model), fontsize=10)
    return style.save(made, path)


def rebuild(model: mae.MAE, images: np.ndarray, mask_ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Masked and rebuilt images, float32 in [0, 1] [n, H, W, 3]; the masks are always the same.

    Visible patches are pasted into the rebuilt image. With normalised targets a removed patch
    gets its true mean and deviation back, which the model never predicted.
    """
    num_patches = np.prod(model.vit.grid(images))
    noise = jax.random.uniform(jax.random.key(0), (len(images), num_patches))
    masked, rebuilt = _rebuild(model, jnp.asarray(images), noise, mask_ratio)
    return np.asarray(masked), np.asarray(rebuilt)


@partial(jax.jit, static_argnames="mask_ratio")
def _rebuild(
    model: mae.MAE, images: jax.Array, noise: jax.Array, mask_ratio: float
) -> tuple[jax.Array, jax.Array]:
    patches, grid = model.vit.patches(images), model.vit.grid(images)
    masking = random_masking(noise, mask_ratio)
    predictions = mae.reconstruct(model, patches, grid, masking)
    if model.norm_pix_loss:
        predictions = denormalize(predictions, patches)
    removed = masking.mask[:, :, None] > 0
    masked = _pixels(model.vit, patches, grid)
    shade = unpatchify(jnp.broadcast_to(removed, patches.shape), grid, model.vit.config.patch_size)
    rebuilt = _pixels(model.vit, jnp.where(removed, predictions, patches), grid)
    return jnp.where(shade, REMOVED_SHADE, masked), rebuilt


def denormalize(predictions: jax.Array, patches: jax.Array) -> jax.Array:
    """Turns standardised patches [B, N, P·P·C] back by the statistics of the true ones."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return predictions * jnp.sqrt(variance + 1e-6) + mean


def _pixels(vit: ViT, patches: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Normalised patches -> images in [0, 1]."""
    images = unpatchify(patches, grid, vit.config.patch_size)
    mean, std = jnp.array(vit.config.pixel_mean), jnp.array(vit.config.pixel_std)
    return jnp.clip(images * std + mean, 0.0, 1.0)


def _settings(model: mae.MAE) -> str:
    targets = "normalised pixels" if model.norm_pix_loss else "pixels"
    config = model.vit.config
    return (
        f"MAE trained with {100 * model.mask_ratio:.0f} % removed, target {targets}, "
        f"patch {config.patch_size} px, width {config.embed_dim}, depth {config.depth}"
    )
