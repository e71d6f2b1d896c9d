"""NEPA: predict the next patch embedding (arXiv 2512.16922, Algorithm 1).

A causal ViT reads [class token, patches 0 … N-2] and predicts, at every place, the embedding of the
patch that comes next. The targets are the input embeddings themselves, gradient stopped. The last
patch is only ever a target: no other token may see it and its own output predicts nothing, so that
leaving it out changes neither the loss nor any gradient. Without the causal mask (an option of the
released code) all tokens see it, and it is read too.

The controls of the paper's Table 1a are values of the config: ``causal``, ``stop_gradient``, and
``shift``, how many places ahead is predicted (1; at 0 every token predicts itself).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.tree_util import Partial
from ml_collections import ConfigDict

from nepa_jax.base.keys import named_key
from nepa_jax.base.sections import Bound, section_problems
from nepa_jax.models.flops import block_macs, training_flops
from nepa_jax.models.layers import run_blocks
from nepa_jax.models.vit import ViT, patch_means, vit_config
from nepa_jax.objectives.base import (
    Alarm,
    Aux,
    Batch,
    Description,
    Features,
    Metrics,
    count_parameters,
    encode_vit,
    image_keys,
)  # fmt: skip
from nepa_jax.objectives.pictured import Pictures, coloured, framed, of_most_contrast, rgb


class NEPA(nnx.Module):
    """A ViT, its attention mask, and what is predicted from where."""

    def __init__(
        self, vit: ViT, *, include_cls: bool, causal: bool, shift: int, stop_gradient: bool
    ):
        self.vit = vit
        self.include_cls = include_cls
        self.causal = causal
        self.shift = shift
        self.stop_gradient = stop_gradient

    @property
    def first(self) -> int:
        """The first token that predicts."""
        return 0 if self.include_cls else 1


DEFAULTS = dict(name="", include_cls=True, causal=True, shift=1, stop_gradient=True)
BOUNDS = {"shift": Bound("[0, 1024]", "1")}

alarms = (
    Alarm(
        lambda scalars: scalars.get("train/target_std", 1.0) < 0.1,
        "the target embeddings collapse (train/target_std below 0.1 of isotropic): features will be "
        "useless; check the stop-gradient and lower optim.lr",
    ),
)

images_apart = True


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with this objective's part of a config."""
    found = section_problems("objective", config.objective, DEFAULTS, BOUNDS)
    if not found and (num_patches := vit_config(config).num_patches) <= config.objective.shift:
        found["objective.shift"] = (
            f"objective.shift = {config.objective.shift}: an image has {num_patches} patches; try 1"
        )
    return list(found.values())


def init_model(config: ConfigDict, rngs: nnx.Rngs) -> NEPA:
    choices = {key: config.objective[key] for key in DEFAULTS if key != "name"}
    return NEPA(ViT(vit_config(config), rngs), **choices)


def loss(model: NEPA, extra: None, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
    """Mean of -cos(prediction, next embedding), float32 [], over images and places.

    The class token predicts patch 0 (released code; ``include_cls=False`` leaves that term out).
    """
    vit = model.vit
    grid = vit.grid(batch["image"])
    embeddings = vit.embed(vit.patches(batch["image"]))  # [B, N, D]
    places = 1 + embeddings.shape[1] - model.shift  # tokens that predict another: 0 … places - 1
    read = places if model.causal else 1 + embeddings.shape[1]
    inputs = vit.prepend_class(embeddings[:, : read - 1]) + vit.positions(grid)[:read]
    rope = jax.tree.map(lambda table: table[:read], vit.rope(grid, named_key(key, "rope")))
    keys = image_keys(key, batch, "drop_path")
    hidden, means = run_blocks(
        vit.blocks, inputs, rope, causal=model.causal, keys=keys, collect=patch_means
    )
    with jax.named_scope("loss"):
        predictions = vit.norm(hidden[:, model.first : places])
        targets = vit.prepend_class(embeddings)[:, model.first + model.shift :]
        if model.stop_gradient:
            targets = jax.lax.stop_gradient(targets)
        aux = Aux(health(predictions, targets), pooled=means)
        return -jnp.mean(cosine(predictions, targets)), aux


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine over the last axis; norms are clamped below at 1e-12 as in PyTorch's normalize."""
    return jnp.sum(unit(a) * unit(b), axis=-1)


def unit(x: jax.Array) -> jax.Array:
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def health(predictions: jax.Array, targets: jax.Array) -> Metrics:
    """Is anything learned? The loss of copying the last patch, and spreads (1 isotropic, 0 collapse)."""
    predictions, targets = jax.lax.stop_gradient((predictions, targets))
    return {
        "cos_copy": jnp.mean(cosine(targets[:, :-1], targets[:, 1:])),
        "target_std": spread_of(targets),
        "pred_std": spread_of(predictions),
    }


def spread_of(x: jax.Array) -> Partial:
    """Mean standard deviation of the normalised vectors' entries, times sqrt(D): x [B, N, D]."""
    x = unit(x)
    return Partial(spread, jnp.mean(x, axis=(0, 1)), jnp.mean(x * x, axis=(0, 1)))


def spread(mean: jax.Array, mean_square: jax.Array) -> jax.Array:
    """The same from the entries' means [D] and those of their squares [D], float32 []."""
    variance = jnp.maximum(mean_square - mean * mean, 0.0)
    return jnp.mean(jnp.sqrt(variance)) * mean.size**0.5


def encode(model: NEPA, images: jax.Array, layer: int | None = -1) -> Features:
    """Features of all N patches under the mask they were pretrained with."""
    return encode_vit(model.vit, images, layer, causal=model.causal)


def prediction_similarity(model: NEPA, images: jax.Array) -> jax.Array:
    """Cosine of the prediction for patch t with the embedding of patch s: float32 [B, t, s].

    NaN in the rows of patches that no token predicts.
    """
    features, vit = encode(model, images), model.vit
    # Token 0 is the class token, and token i predicts token i + shift: patch t is token t + 1.
    tokens = jnp.concatenate([features.cls[:, None], features.patches], axis=1)
    embeddings = vit.embed(vit.patches(images))
    sources = np.arange(embeddings.shape[1]) + 1 - model.shift
    predictions = unit(tokens[:, np.maximum(sources, 0)])
    cosines = jnp.einsum("btd,bsd->bts", predictions, unit(embeddings))
    return jnp.where((sources >= model.first)[:, None], cosines, jnp.nan)


NUM_QUERIES = 3
TITLES = ("image", "each prediction\nand its patch", *["of the frame\nand all"] * NUM_QUERIES)


def pictures(model: NEPA, images: jax.Array) -> Pictures:
    """Of each image the cosine of every prediction with its patch, and what a few predictions resemble."""
    size, grid = model.vit.config.patch_size, model.vit.grid(images)
    cosines = prediction_similarity(model, images)
    queries = of_most_contrast(images, size, NUM_QUERIES)
    maps = [coloured(jnp.diagonal(cosines, axis1=1, axis2=2), grid, size)]
    for query in queries.T:
        row = jnp.take_along_axis(cosines, query[:, None, None], axis=1)[:, 0]
        maps.append(framed(coloured(row, grid, size), query, size))
    return Pictures(jnp.stack([rgb(images), *maps], axis=1), TITLES[: 1 + len(maps)])


def describe(config: ConfigDict) -> Description:
    vit = vit_config(config)
    tokens = 1 + vit.num_patches - (config.objective.shift if config.objective.causal else 0)
    macs = vit.num_patches * vit.patch_dim * vit.embed_dim + block_macs(vit, tokens)
    return Description(tokens, count_parameters(init_model, config), training_flops(macs))
