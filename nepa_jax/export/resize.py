"""Position tables of another grid, by the rule of the library that will load them."""

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.formats.constants import class_and_sincos
from nepa_jax.models.posemb import resample
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
