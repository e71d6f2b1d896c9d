"""An encoder alone, as files without a decoder or head hold it: for features, not for training."""

import jax
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.models.vit import ViT, vit_config
from nepa_jax.objectives.base import (
    Aux,
    Batch,
    Description,
    Features,
    count_parameters,
    encode_vit,
)  # fmt: skip

NAME = "nepa_jax.objectives.encoder"


class Encoder(nnx.Module):
    """A ViT and the attention mask it was trained with."""

    def __init__(self, vit: ViT, causal: bool) -> None:
        self.vit = vit
        self.causal = causal


def init_model(config: ConfigDict, rngs: nnx.Rngs) -> Encoder:
    return Encoder(ViT(vit_config(config), rngs), config.objective.causal)


def loss(model: Encoder, extra: None, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
    """Raises UserError: there is nothing to train it by."""
    raise UserError(
        f"objective.name = {NAME!r}: an encoder alone has no loss; fine-tune it, or choose an "
        "objective such as nepa_jax.objectives.mae"
    )


def encode(model: Encoder, images: jax.Array, layer: int | None = -1) -> Features:
    """Features of all patches; a model without a final norm gives its last block's output."""
    return encode_vit(model.vit, images, layer, causal=model.causal)


def describe(config: ConfigDict) -> Description:
    """Counts parameters and tokens; there is no training step to count."""
    return Description(
        1 + vit_config(config).num_patches, count_parameters(init_model, config), 0.0
    )


def is_causal(config: ConfigDict) -> bool:
    """Whether a run's encoder attends under the causal mask."""
    return bool(config.objective.get("causal", False))


def encoder_config(config: ConfigDict) -> ConfigDict:
    """The config of a run's encoder alone."""
    alone = ConfigDict(config.to_dict())
    alone.objective = ConfigDict(dict(name=NAME, causal=is_causal(config)))
    return alone
