"""Semantic segmentation: an encoder under UPerNet, both of them trained.

mmsegmentation 1.2.2's (UPerHead, FCNHead, batch norms over the whole batch) on BEiT's neck; see
models/upernet.py. The batch norms' running moments live beside the model.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from ml_collections import ConfigDict

from nepa_jax.base.keys import named_key
from nepa_jax.base.sections import Bound, section_problems
from nepa_jax.models.flops import block_macs, training_flops
from nepa_jax.models.layers import run_blocks
from nepa_jax.models.sizes import image_size
from nepa_jax.models.upernet import (
    AUX_LEVEL,
    IGNORED,
    POOL_SCALES,
    Moments,
    Statistics,
    UPerNet,
    UPerNetConfig,
    resized,
    segmentation_loss,
    updated,
)
from nepa_jax.models.vit import ViT, vit_config
from nepa_jax.objectives.base import (
    Aux,
    Batch,
    Description,
    Features,
    count_parameters,
    encode_vit,
    image_keys,
)  # fmt: skip

DEFAULTS = dict(name="", num_classes=150, causal=False, channels=512, aux_channels=256, dropout=0.1)
BOUNDS = {
    "num_classes": Bound("[2, 255]", "150"),
    "channels": Bound("[1, 65536]", "512"),
    "aux_channels": Bound("[1, 65536]", "256"),
    "dropout": Bound("[0, 1)", "0.1"),
}
# What may come from a model that learned something else; all that stands on it begins anew.
CARRIES = "vit/"
# Blocks whose outputs the neck gets, as shares of the depth: 4, 6, 8, 12 of 12 and 8, 12, 16, 24 of 24,
# as BEiT and mmsegmentation's MAE have them.
SHARES = (1 / 3, 1 / 2, 2 / 3, 1.0)


class Masks(Protocol):
    """What a data set says of its masks."""

    num_classes: int


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with this objective's part of a config."""
    found = list(section_problems("objective", config.objective, DEFAULTS, BOUNDS).values())
    if not config.data.masks:
        found.append(
            f"data.masks = {config.data.masks}: {config.objective.get('name')} learns the classes of pixels; try true"
        )
    height, width = image_size(config)
    if height != width:
        found.append(
            f"model.image_size = {(height, width)}: windows that slide over test images are square; try "
            f"{min(height, width)}"
        )
    if min(height, width) < 2 * config.model.patch_size:
        found.append(
            f"model.image_size = {(height, width)}: the pyramid's last level is half of the grid of patches, and "
            f"wants two each way; try {2 * config.model.patch_size}"
        )
    return found


def data_problems(config: ConfigDict, data: Masks) -> list[str]:
    """Why these masks cannot be learned."""
    if config.objective.num_classes == data.num_classes:
        return []
    return [
        f"objective.num_classes = {config.objective.num_classes}: the masks have {data.num_classes} "
        f"classes; try --config.objective.num_classes={data.num_classes}"
    ]


def tapped(depth: int) -> tuple[int, ...]:
    """The four blocks that the neck stands on, from 1; of a shallow encoder one may serve twice."""
    return tuple(max(1, round(share * depth)) for share in SHARES)


class Segmenter(nnx.Module):
    """ViT, and UPerNet on the outputs of four of its blocks, without final norm."""

    def __init__(self, vit: ViT, config: UPerNetConfig, causal: bool, rngs: nnx.Rngs):
        self.vit = vit
        self.upernet = UPerNet(config, rngs)
        self.causal = causal

    def maps(
        self,
        images: jax.Array,
        keys: jax.Array | None = None,
        rope_key: jax.Array | None = None,
    ) -> list[jax.Array]:
        """Four maps of patch tokens, float32 [B, rows, columns, D].

        Args:
            images: uint8 [B, H, W, C].
            keys: [B], to train with drop path.
            rope_key: to train with moved rotary coordinates, as in pretraining.
        """
        vit = self.vit
        grid = vit.grid(images)
        _, states = run_blocks(
            vit.blocks, vit.tokens(images), vit.rope(grid, rope_key), causal=self.causal, keys=keys,
            collect=lambda x: x[:, 1:],
        )  # fmt: skip
        shape = (len(images), *grid, vit.config.embed_dim)
        return [states[layer - 1].reshape(shape) for layer in tapped(vit.config.depth)]


def upernet_config(config: ConfigDict) -> UPerNetConfig:
    objective = config.objective
    return UPerNetConfig(
        config.model.embed_dim, objective.num_classes, objective.channels, objective.aux_channels,
        objective.dropout,
    )  # fmt: skip


def init_model(config: ConfigDict, rngs: nnx.Rngs) -> Segmenter:
    vit = ViT(vit_config(config), rngs)
    return Segmenter(vit, upernet_config(config), config.objective.causal, rngs)


def init_extra(config: ConfigDict, model: Segmenter) -> dict[str, Moments]:
    """The running moments of every batch norm, by its name."""
    return model.upernet.initial_statistics()


def loss(
    model: Segmenter, extra: Statistics, batch: Batch, key: jax.Array
) -> tuple[jax.Array, Aux]:
    """mmsegmentation's loss of both heads, float32 []; ``batch["mask"]`` uint8 [B, H, W], 255: no class.

    The batch norms take the moments of all images of the step, on whatever device they are; under
    accumulation of those of a part, as the original would.
    """
    maps = model.maps(batch["image"], image_keys(key, batch, "drop_path"), named_key(key, "rope"))
    outputs = model.upernet(maps, keys=image_keys(key, batch, "dropout"))
    metrics = {"pixel_accuracy": pixel_accuracy(outputs.logits, batch["mask"])}
    return segmentation_loss(outputs, batch["mask"]), Aux(metrics, carry=outputs.seen)


def pixel_accuracy(logits: jax.Array, mask: jax.Array) -> Partial:
    """Of the pixels with a class, the share that is taken for it: to be called; NaN if none has one."""
    predicted = jnp.argmax(resized(logits, mask.shape[1:]), axis=-1)
    known = mask != IGNORED
    return Partial(jnp.divide, jnp.mean(known & (predicted == mask)), jnp.mean(known))


def after_update(
    extra: Statistics, model: Segmenter, aux: Aux, step: jax.Array
) -> dict[str, Moments]:
    return updated(extra, aux.carry)


def window_scores(model: Segmenter, extra: Statistics, images: jax.Array) -> jax.Array:
    """Class scores of images as large as those trained on, float32 [B, 4 rows, 4 columns, K], by the
    running moments; deterministic."""
    return model.upernet(model.maps(images), running=extra).logits


def encode(model: Segmenter, images: jax.Array, layer: int | None = -1) -> Features:
    """Features under the attention mask the model is trained with."""
    return encode_vit(model.vit, images, layer, causal=model.causal)


def describe(config: ConfigDict) -> Description:
    vit = vit_config(config)
    macs = vit.num_patches * vit.patch_dim * vit.embed_dim + block_macs(vit, 1 + vit.num_patches)
    macs += upernet_macs(upernet_config(config), vit.grid)
    return Description(
        1 + vit.num_patches, count_parameters(init_model, config), training_flops(macs)
    )


def upernet_macs(config: UPerNetConfig, grid: Sequence[int]) -> int:
    """Multiply-adds of the convolutions of one forward pass, both heads, for one image."""
    dim, width, classes = config.embed_dim, config.channels, config.num_classes
    rows, columns = grid
    pixels = rows * columns
    levels = [16 * pixels, 4 * pixels, pixels, (rows // 2) * (columns // 2)]
    neck = (pixels + 4 * pixels + pixels) * dim * 4 * dim
    pools = sum(scale**2 for scale in POOL_SCALES) * dim * width
    context = pools + 9 * levels[3] * (dim + len(POOL_SCALES) * width) * width
    pyramid = sum(levels[:3]) * (dim + 9 * width) * width
    finest = levels[0] * (9 * len(levels) * width + classes) * width
    aux = levels[AUX_LEVEL] * (9 * dim + classes) * config.aux_channels
    return neck + context + pyramid + finest + aux
