"""Classification: the plain supervised control, and fine-tuning with mixed images and soft labels."""

from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.keys import named_key
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

DEFAULTS = dict(name="", num_classes=1000, pool="mean", causal=False, head_init=0.0, **mix.DEFAULTS)
BOUNDS = {
    "num_classes": Bound("[1, 1000000]", "1000"),
    "head_init": Bound("[0, 1]", "0.0"),  # standard deviation of the classifier's weights
    **mix.BOUNDS,
}
# What may come from a model that learned something else; all that stands on it begins anew.
CARRIES = "vit/"
TOP = 5  # classes among which the true one is looked for


class Labels(Protocol):
    """What a data set says of its labels."""

    labelled: bool
    num_classes: int


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with this objective's part of a config."""
    section = {
        "head_init": 0.0,
        **mix.DEFAULTS,
        **config.objective,
    }  # a control's recipe may leave these out
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
    if config.objective.num_classes != data.num_classes:
        return [
            f"objective.num_classes = {config.objective.num_classes}: the set has {data.num_classes} "
            f"classes; try objective.num_classes={data.num_classes}"
        ]
    return []


def init_model(config: ConfigDict, rngs: nnx.Rngs) -> Classifier:
    objective = config.objective
    vit = ViT(vit_config(config), rngs)
    model = Classifier(
        vit,
        objective.num_classes,
        objective.pool,
        objective.causal,
        rngs,
        objective.get("head_init", 0.0),
    )
    model.mix = mix.mix_config(config)
    return model


def loss(model: Classifier, extra: None, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
    """Mean softmax cross-entropy, float32 []; ``batch["label"]`` int32 [B].

    Where images are mixed, ``accuracy`` counts the label with the larger share.
    """
    images, targets = mix.mix(model.mix, model.vit.config, batch, key)
    keys, rope_key = image_keys(key, batch, "drop_path"), named_key(key, "rope")
    tokens, pooled = model.tokens(images, keys, rope_key)
    logits = model.head(model.pooled(tokens))
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == jnp.argmax(targets, axis=-1))
    return mix.soft_cross_entropy(logits, targets), Aux({"accuracy": accuracy}, pooled=pooled)


def measure(model: Classifier, batch: Batch) -> dict[str, jax.Array]:
    """Of each image, as it is: its loss float32 [B], the class it is taken for int32 [B], and whether
    the true one is the first, or among the first five, bool [B]. Of equal scores the first counts."""
    scores, label = model(batch["image"]).astype(jnp.float32), batch["label"][:, None]
    own = jnp.take_along_axis(scores, label, axis=-1)
    before = jnp.arange(scores.shape[-1]) < label
    place = jnp.sum((scores > own) | ((scores == own) & before), axis=-1)
    return {
        "loss": jax.nn.logsumexp(scores, axis=-1) - own[:, 0],
        "prediction": jnp.argmax(scores, axis=-1),
        "top1": place < 1,
        "top5": place < TOP,
    }


def means(rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What is logged of a data set."""
    return {name: float(np.mean(rows[name], dtype=np.float64)) for name in ("loss", "top1", "top5")}


def encode(model: Classifier, images: jax.Array, layer: int | None = -1) -> Features:
    """Features under the attention mask the model is trained with."""
    return encode_vit(model.vit, images, layer, causal=model.causal)


def describe(config: ConfigDict) -> Description:
    vit = vit_config(config)
    macs = vit.num_patches * vit.patch_dim * vit.embed_dim + block_macs(vit, 1 + vit.num_patches)
    return Description(
        1 + vit.num_patches, count_parameters(init_model, config), training_flops(macs)
    )
