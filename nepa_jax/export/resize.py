"""Position tables of another grid, by the rule of the library that will load them."""

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.formats.constants import class_and_sincos
from nepa_jax.objectives.base import abstract_model, load_objective


def resize_model(
    model: nnx.Module, config: ConfigDict, side: int, rule: str
) -> tuple[nnx.Module, ConfigDict]:
    """The same encoder for square images of another side, and its config.

    A sine-cosine table is resampled too, as those libraries do, and is a learned one from then on.

    Raises:
        UserError: the patch side does not divide ``side``, or there is a decoder.
    """
    patch = config.model.patch_size
    if side % patch or side < patch:
        near = max(round(side / patch), 1) * patch
        raise UserError(
            f"--image-size={side}: is no multiple of the patch side {patch}; try {near}"
        )
    if hasattr(model, "decoder"):
        raise UserError(f"--image-size={side}: a decoder keeps its grid; add --encoder-only")
    leaves = named_leaves(model)
    new = ConfigDict(config.to_dict())
    new.model.image_size = (side, side)
    if config.model.posemb != "none":
        leaves["vit/pos_embed"] = _resized_table(model, leaves, (side // patch,) * 2, rule)
        new.model.posemb = "learned"
    shapes = abstract_model(load_objective(new.objective.name).init_model, new)
    return with_leaves(shapes, leaves), new


def _resized_table(model: nnx.Module, leaves: dict, grid: tuple[int, int], rule: str) -> np.ndarray:
    config = model.vit.config
    if config.posemb == "sincos":
        table = class_and_sincos(config.grid, config.embed_dim)
    else:
        table = np.asarray(leaves["vit/pos_embed"])
    return np.concatenate([table[:1], resample(table[1:], config.grid, grid, rule)])


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
