"""Frozen features: one pooled vector per image, at any layer."""

from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
from flax import nnx

from nepa_jax.base.errors import UserError
from nepa_jax.objectives.base import Features, Objective, encode


def class_token(features: Features) -> jax.Array:
    """Raises UserError if there is none."""
    if features.cls is None:
        raise UserError("this model has no class token: choose pool mean or last")
    return features.cls


# […, B, N, D] -> […, B, D], or as it is.
POOLS: dict[str, Callable[[Features], jax.Array]] = {
    "mean": lambda features: features.patches.mean(axis=-2),
    "cls": class_token,
    "last": lambda features: features.patches[..., -1, :],
    "none": lambda features: features.patches,
}


def extract(
    objective: Objective,
    model: nnx.Module,
    batches: Iterable[np.ndarray],
    pool: str = "mean",
    layer: int | None = None,
) -> np.ndarray:
    """Encodes and pools images, batch by batch.

    Args:
        objective: says what the model's features are.
        batches: uint8 [B, H, W, 3] each; all of one size but the last, which may be smaller.
        pool: "mean" of the patch tokens, "cls" for the class token, "last" for the last patch,
            "none" for all patch tokens.
        layer: one layer (0 is the embedding, -1 the last, normed), or None for all of them.

    Returns:
        float32 [layers, images, D], or [layers, images, N, D] without pooling, on the host;
        ``layers`` is 1 if one was asked for.

    Raises:
        UserError: there is no such pooling, or the model has no class token.
    """
    if pool not in POOLS:
        raise UserError(f"pool {pool!r} is unknown; choose from {', '.join(POOLS)}")
    pooled = [
        _with_layers(encode(objective, model, images, layer, POOLS[pool]), layer)[:, :count]
        for images, count in _padded(batches)
    ]
    if not pooled:
        raise UserError("no images to encode: give at least one batch")
    return np.concatenate(pooled, axis=1)


def in_batches(images: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Cuts an array of images [n, …] into batches; the last may be smaller."""
    for start in range(0, len(images), batch_size):
        yield images[start : start + batch_size]


def _padded(batches: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    """Batches of the first one's size and their number of real images, so that one compile does."""
    size = None
    for images in batches:
        size = size or len(images)
        missing = size - len(images)
        yield np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))), len(images)


def _with_layers(pooled: jax.Array, layer: int | None) -> np.ndarray:
    """On the host, with an axis of layers in front where there is but one."""
    return np.asarray(pooled if layer is None else pooled[None])
