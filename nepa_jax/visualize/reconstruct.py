"""What MAE sees, and what it makes of it (as in He et al. 2022, figures 2 to 4)."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from nepa_jax.models.masking import num_kept, random_masking
from nepa_jax.models.vit import unpatchify
from nepa_jax.objectives import mae
from nepa_jax.objectives.pictured import to_pixels
from nepa_jax.visualize import sheet, style

RATIOS = (0.75, 0.85, 0.95)
REMOVED = np.uint8(140)  # the gray of a removed patch


class Rebuilt(NamedTuple):
    """One image at one mask ratio, uint8 [H, W, C] each."""

    masked: np.ndarray  # what the encoder sees; gray where a patch is removed
    pasted: np.ndarray  # visible patches are the image's own pixels
    predicted: np.ndarray  # the decoder's output everywhere; on visible patches it was not trained
    kept: int  # patches, of so many
    patches: int


def draw(
    model: mae.MAE,
    images: Sequence[np.ndarray],
    ratios: Sequence[float] = RATIOS,
    seed: int = 0,
) -> Figure:
    """Draws originals, and for each mask ratio what is left of them and what is rebuilt.

    Args:
        images: uint8 [H, W, C], of one shape or several; one column each, eight read well.
        ratios: shares of removed patches; each leaves one at least (:func:`usable`).
        seed: of the masks, one for each image; a smaller ratio keeps all that a larger one keeps.
    """
    rows, labels = [[style.rgb(image) for image in images]], ["image"]
    keys = jax.random.split(jax.random.key(seed), len(images))
    for ratio in ratios:
        found = [rebuild(model, image, ratio, key) for image, key in zip(images, keys, strict=True)]
        columns = [map(style.rgb, (each.masked, each.pasted, each.predicted)) for each in found]
        rows += map(list, zip(*columns, strict=True))
        labels += [
            f"{100 * ratio:.4g} % removed{_counts(found)}",
            "rebuilt, visible\npatches pasted",
            "rebuilt,\nas predicted",
        ]
    return sheet.draw(sheet.Sheet(rows, labels), _settings(model))[0]


def usable(ratios: Sequence[float], num_patches: int) -> list[float]:
    """The mask ratios that leave a patch of so many."""
    return [ratio for ratio in ratios if num_kept(num_patches, ratio) >= 1]


def rebuild(model: mae.MAE, image: np.ndarray, mask_ratio: float, key: jax.Array) -> Rebuilt:
    """What the model makes of one image, uint8 [H, W, C], with a share of its patches removed.

    With normalised targets every patch gets its true mean and deviation back, which the model never
    predicted.
    """
    num_patches = int(np.prod(model.vit.grid(image[None])))
    noise = jax.random.uniform(key, (1, num_patches))
    removed, predicted = map(np.asarray, _predict(model, image[None], noise, mask_ratio))
    masked, pasted = (np.where(removed[0], fill, image) for fill in (REMOVED, predicted[0]))
    return Rebuilt(masked, pasted, predicted[0], num_kept(num_patches, mask_ratio), num_patches)


@partial(jax.jit, static_argnames="mask_ratio")
def _predict(
    model: mae.MAE, images: jax.Array, noise: jax.Array, mask_ratio: float
) -> tuple[jax.Array, jax.Array]:
    """Where patches are removed, bool [B, H, W, C], and all that is predicted, uint8."""
    patches, grid = model.vit.patches(images), model.vit.grid(images)
    masking = random_masking(noise, mask_ratio)
    predictions = mae.reconstruct(model, patches, grid, masking)
    if model.norm_pix_loss:
        predictions = mae.denormalize(predictions, patches)
    removed = jnp.broadcast_to(masking.mask[:, :, None] > 0, patches.shape)
    size = model.vit.config.patch_size
    return unpatchify(removed, grid, size), to_pixels(model.vit, predictions, grid)


def _counts(found: Sequence[Rebuilt]) -> str:
    """How many patches the encoder sees, if it is as many of every image."""
    counts = {(each.kept, each.patches) for each in found}
    return "" if len(counts) > 1 else "\n{} of {} kept".format(*counts.pop())


def _settings(model: mae.MAE) -> str:
    config = model.vit.config
    targets = (
        "normalised pixels (each patch gets its true mean and contrast back)"
        if model.norm_pix_loss
        else "pixels"
    )
    return (
        f"MAE trained with {100 * model.mask_ratio:.4g} % removed, target {targets}, "
        f"patch {config.patch_size} px, width {config.embed_dim}, depth {config.depth}"
    )
