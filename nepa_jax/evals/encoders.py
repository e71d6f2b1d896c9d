"""The encoder that is evaluated, and its control: other attention, fresh weights, a checksum."""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.checkpoint.checksums import checksums
from nepa_jax.loading import Loaded
from nepa_jax.objectives.base import Features, abstract_model
from nepa_jax.objectives.encoder import is_causal

ATTENTIONS = ("causal", "bidirectional")


def attention_of(loaded: Loaded) -> str:
    """Which tokens a patch sees: those before it alone, or all."""
    return ATTENTIONS[0] if is_causal(loaded.config) else ATTENTIONS[1]


def with_attention(loaded: Loaded, attention: str | None) -> Loaded:
    """The same weights under a causal or a bidirectional mask; None: the mask of their training.

    Raises:
        UserError: causal, and the objective has but one mask.
    """
    if attention is None or attention == attention_of(loaded):
        return loaded
    config = ConfigDict(loaded.config.to_dict())
    if "causal" not in config.objective:
        raise UserError(
            f"--attention={attention}: {config.objective.name} has no causal attention; leave it out"
        )
    config.objective.causal = attention == "causal"
    shapes = abstract_model(loaded.objective.init_model, config)
    return replace(loaded, model=with_leaves(shapes, named_leaves(loaded.model)), config=config)


def untrained(loaded: Loaded) -> Loaded:
    """The same architecture with the fresh weights of its seed: what pretraining adds to."""
    config = loaded.config

    def fresh() -> nnx.Module:
        return loaded.objective.init_model(config, nnx.Rngs(config.run.seed))

    return replace(loaded, model=jax.jit(fresh)())


def weights_digest(loaded: Loaded) -> str:
    """A hash of names, shapes and values of all weights, hexadecimal."""
    leaves = named_leaves(loaded.model)
    shapes = repr(sorted((name, leaf.shape, str(leaf.dtype)) for name, leaf in leaves.items()))
    sums = np.asarray(checksums(leaves))
    return hashlib.sha256(shapes.encode() + sums.tobytes()).hexdigest()


def shapes_of(loaded: Loaded, image_size: tuple[int, int]) -> Features:
    """Shapes of the features at every layer: patches [layers, 1, N, D], class token or None."""
    model = loaded.config.model
    image = jax.ShapeDtypeStruct((1, *image_size, model.in_channels), np.uint8)

    def arrays(module: nnx.Module, image: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        features = loaded.objective.encode(module, image, None)
        return features.patches, features.cls

    patches, cls = jax.eval_shape(arrays, loaded.model, image)
    return Features(patches, cls, tuple(side // model.patch_size for side in image_size))


def checked_layers(layers: Iterable[int] | None, depth: int) -> tuple[int, ...]:
    """Layers counted from 0, the embedding, to ``depth``, the last; None: all of them.

    Raises:
        UserError: there is no such layer.
    """
    if layers is None:
        return tuple(range(depth + 1))
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise UserError(
                f"layer {layer} does not exist; choose -{depth + 1} … {depth} (0 = embedding)"
            )
    return tuple(layer % (depth + 1) for layer in layers)
