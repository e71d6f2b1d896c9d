"""Classification: the plain supervised control, and fine-tuning with mixed images and soft labels."""

from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.sections import Bound, section_problems
from nepa_jax.models.flops import block_macs, training_flops
from nepa_jax.models.heads import POOLS, Classifier
from nepa_jax.models.vit import ViT, vit_config
from nepa_jax.objectives import mix
from nepa_jax.objectives.base import (
    Aux,
    Batch,
    Description,
    Features,
    count_parameters,
    encode_vit,
    image_keys,
)  # fmt: skip

DEFAULTS = dict(name="", num_classes=1000, pool="mean", causal=False, **mix.DEFAULTS)
BOUNDS = {"num_classes": Bound("[1, 1000000]", "1000"), **mix.BOUNDS}


class Labels(Protocol):
    """What a data set says of its labels."""

    labelled: bool
    num_classes: int


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with this objective's part of a config."""
    section = {**mix.DEFAULTS, **config.objective}  # a control's recipe may leave these out
    found = section_problems("objective", section, DEFAULTS, BOUNDS)
    pool = config.objective.get("pool")
    if pool not in POOLS:
        found["objective.pool"] = f"objective.pool = {pool}: not a choice; try {' or '.join(POOLS)}"
    return [*found.values(), *([] if found else mix.problems(config))]


def data_problems(config: ConfigDict, data: Labels) -> list[str]:
    """Why these labels cannot be learned."""
    if not data.labelled:
        return [
            f"data.path = {config.data.path}: the images have no labels, which "
            "objective.name = nepa_jax.objectives.supervised learns; prepare them from class folders, "
            "or with --labels=FILE"
        ]
    if config.objective.num_classes < data.num_classes:
        return [
            f"objective.num_classes = {config.objective.num_classes}: the set has {data.num_classes} "
            f"classes; try objective.num_classes={data.num_classes}"
        ]
    return []


def init_model(config: ConfigDict, rngs: nnx.Rngs) -> Classifier:
    objective = config.objective
    vit = ViT(vit_config(config), rngs)
    model = Classifier(vit, objective.num_classes, objective.pool, objective.causal, rngs)
    model.mix = mix.mix_config(config)
    return model


def loss(model: Classifier, extra: None, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
    """Mean softmax cross-entropy, float32 []; ``batch["label"]`` int32 [B].

    Where images are mixed, ``accuracy`` counts the label with the larger share.
    """
    images, targets = mix.mix(model.mix, model.vit.config, batch, key)
    logits = model(images, image_keys(key, batch, "drop_path"))
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1))
    return mix.soft_cross_entropy(logits, targets), Aux({"accuracy": accuracy})


def encode(model: Classifier, images: jax.Array, layer: int | None = -1) -> Features:
    """Features under the attention mask the model is trained with."""
    return encode_vit(model.vit, images, layer, causal=model.causal)


def describe(config: ConfigDict) -> Description:
    vit = vit_config(config)
    macs = vit.num_patches * vit.patch_dim * vit.embed_dim + block_macs(vit, 1 + vit.num_patches)
    return Description(
        1 + vit.num_patches, count_parameters(init_model, config), training_flops(macs)
    )
