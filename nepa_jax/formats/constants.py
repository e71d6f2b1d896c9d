"""What is no parameter of our model but an array in files of others."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from flax import nnx

from nepa_jax.formats.tables import Format
from nepa_jax.models.posemb import sincos_table
from nepa_jax.models.vit import ViTConfig


class Constant(NamedTuple):
    """What is no parameter here but an array there; made when asked for, as it may be large."""

    shape: tuple[int, ...]
    values: Callable[[], np.ndarray]


def constants(model: nnx.Module, table: Format) -> dict[str, Constant]:
    """Fixed positions, and q/k-norms left plain."""
    written_out = table.full_qk_norms and model.vit.config.qk_norm
    return fixed_positions(model) | (plain_norms(model.vit.config) if written_out else {})


def fixed_positions(model: nnx.Module) -> dict[str, Constant]:
    """The sine-cosine tables of a model."""
    owners = {"vit": model.vit} if model.vit.config.posemb == "sincos" else {}
    if hasattr(model, "decoder"):
        owners["decoder"] = model.decoder
    grid, tokens = model.vit.config.grid, 1 + model.vit.config.num_patches
    return {
        f"{name}/pos_embed": Constant(
            (tokens, owner.config.embed_dim),
            partial(class_and_sincos, grid, owner.config.embed_dim),
        )
        for name, owner in owners.items()
    }


def class_and_sincos(grid: tuple[int, int], dim: int) -> np.ndarray:
    """The sine-cosine table with a zero row for the class token: float32 [1 + N, D]."""
    return np.pad(sincos_table(grid, dim), ((1, 0), (0, 0)))


def plain_norms(config: ViTConfig) -> dict[str, Constant]:
    """What our q/k-norms lack, [depth, head_dim] each, at the values that change nothing."""
    shape = (config.depth, config.head_dim)
    plain = {} if config.has_qk_norm_bias else {"bias": np.zeros}
    plain |= {} if config.qk_norm_affine else {"scale": np.ones}
    return {
        f"vit/blocks/attn/{norm}/{part}": Constant(shape, partial(make, shape, np.float32))
        for norm in ("q_norm", "k_norm")
        for part, make in plain.items()
    }
