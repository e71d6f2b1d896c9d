"""Classification with integer labels: the plain supervised control, and the model of fine-tuning."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.flops import block_macs, training_flops
from nepa_jax.models.heads import Classifier
from nepa_jax.models.vit import ViT, vit_config
from nepa_jax.objectives.base import (
    Batch,
    Description,
    Features,
    Metrics,
    count_parameters,
    encode_vit,
    image_keys,
)  # fmt: skip


def init_model(config: ConfigDict, rngs: nnx.Rngs) -> Classifier:
    objective = config.objective
    vit = ViT(vit_config(config), rngs)
    return Classifier(vit, objective.num_classes, objective.pool, objective.causal, rngs)


def loss(model: Classifier, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
    """Mean softmax cross-entropy, float32 []; ``batch["label"]`` int32 [B]."""
    logits = model(batch["image"], image_keys(key, batch, "drop_path"))
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == batch["label"])
    return jnp.mean(losses), {"accuracy": accuracy}


def encode(model: Classifier, images: jax.Array, layer: int | None = -1) -> Features:
    """Features under the attention mask the model is trained with."""
    return encode_vit(model.vit, images, layer, causal=model.causal)


def describe(config: ConfigDict) -> Description:
    vit = vit_config(config)
    macs = vit.num_patches * vit.patch_dim * vit.embed_dim + block_macs(vit, 1 + vit.num_patches)
    return Description(
        1 + vit.num_patches, count_parameters(init_model, config), training_flops(macs)
    )
