"""Frozen features: pooled vectors of images, at any layer, by several poolings at once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from nepa_jax.base.errors import UserError
from nepa_jax.data.loader import LoaderConfig, iter_epoch
from nepa_jax.loading import Loaded
from nepa_jax.mesh import host_part, put_batch, replicated, side_by_side
from nepa_jax.objectives.base import Features, Objective, encode

AHEAD = 2  # batches that the devices have while the one before is taken


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


class Placed(NamedTuple):
    """An encoder where it lies."""

    objective: Objective
    model: nnx.Module
    mesh: Mesh


class Rows(NamedTuple):
    """Some images of a split, in order."""

    pooled: dict[str, np.ndarray]  # pooling -> float32 [layers, b, D], or [layers, b, N, D]
    labels: np.ndarray  # int32 [b]; -1 where the set has none
    index: np.ndarray  # int32 [b], the records' numbers


def encoded(
    loaded: Loaded,
    data: LoaderConfig,
    pools: Sequence[str],
    layers: Sequence[int],
    first: int | None = None,
) -> Iterator[Rows]:
    """A split once through the encoder, in the order of its records, whole on every host.

    Each host reads its part of every batch and all devices share the batch; while they work the next
    ones are decoded. Records that cannot be decoded are left out.

    Args:
        loaded: the encoder.
        data: a split, and how its images are cut, without chance.
        pools: names of :data:`POOLS`.
        layers: 0 is the embedding, the last one is normed.
        first: so many records alone, from the beginning of the split.

    Raises:
        UserError: as :func:`iter_epoch`, or the model has no class token and ``cls`` is asked for.
    """
    mesh = side_by_side()
    data = replace(data, batch_size=-(-data.batch_size // mesh.size) * mesh.size)
    placed = Placed(loaded.objective, on_all_devices(loaded.model, mesh), mesh)
    return encoded_by(placed, data, pools, layers, first)


def encoded_by(
    placed: Placed,
    data: LoaderConfig,
    pools: Sequence[str],
    layers: Sequence[int],
    first: int | None = None,
) -> Iterator[Rows]:
    """As :func:`encoded`, by a model as it lies; ``batch_size`` must divide over its devices."""
    objective, model, mesh = placed
    part = host_part(mesh)
    pooled = partial(_pooled, objective, model, pools=tuple(pools), layers=tuple(layers),
                     whole=replicated(mesh))  # fmt: skip
    waiting: deque[dict[str, jax.Array]] = deque()
    for made in iter_epoch(data, part.index, part.count, first):
        batch = made.batch | {"index": made.account.index.astype(np.int32)}
        waiting.append(pooled(put_batch(batch, mesh)))
        if len(waiting) > AHEAD:
            yield _rows(waiting.popleft(), pools)
    while waiting:
        yield _rows(waiting.popleft(), pools)


@partial(jax.jit, static_argnames=("objective", "pools", "layers", "whole"))
def _pooled(
    objective: Objective,
    model: nnx.Module,
    batch: dict[str, jax.Array],
    pools: tuple[str, ...],
    layers: tuple[int, ...],
    whole: NamedSharding,
) -> dict[str, jax.Array]:
    """What is kept of a batch, on every device whole."""
    with jax.sharding.use_abstract_mesh(whole.mesh.abstract_mesh):
        features = at_layers(objective, model, batch["image"], layers)
    kept = {name: values for name, values in batch.items() if name in ("label", "index")}
    kept |= {pool: POOLS[pool](features) for pool in pools}
    return jax.lax.with_sharding_constraint(kept, whole)


def at_layers(
    objective: Objective, model: nnx.Module, images: jax.Array, layers: Sequence[int]
) -> Features:
    """Of images [B, H, W, C] the features at some layers, counted from 0, in one pass."""
    patches, cls, grid = objective.encode(model, images, None)
    chosen = np.array(layers)
    return Features(patches[chosen], None if cls is None else cls[chosen], grid)


def _rows(kept: dict[str, jax.Array], pools: Sequence[str]) -> Rows:
    """On this host, without the rows that no image stands in."""
    found = {name: np.asarray(values) for name, values in kept.items()}
    there = found["index"] >= 0
    labels = found.get("label", np.full(len(there), -1, np.int32))
    if there.all():
        return Rows({pool: found[pool] for pool in pools}, labels, found["index"])
    pooled = {pool: found[pool][:, there] for pool in pools}
    return Rows(pooled, labels[there], found["index"][there])


def on_all_devices(model: nnx.Module, mesh: Mesh) -> nnx.Module:
    """The same weights whole on every device; every host has them all."""

    def placed(leaf: jax.Array | np.ndarray) -> jax.Array:
        values = np.asarray(leaf)
        return jax.make_array_from_callback(
            values.shape, replicated(mesh), lambda index: values[index]
        )

    return jax.tree.map(placed, model)


def extract(
    objective: Objective,
    model: nnx.Module,
    batches: Iterable[np.ndarray],
    pool: str = "mean",
    layer: int | None = None,
) -> np.ndarray:
    """Encodes and pools images that are no prepared set, batch by batch, on one device.

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
