"""Trained weights in one line of Python: ``load(path).encode(images)``."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.checkpoint.reading import is_checkpoint
from nepa_jax.checkpoint.weights import load_weights
from nepa_jax.config import evaluation_data
from nepa_jax.data.images import ImagesLike, as_batch
from nepa_jax.models.sizes import image_size
from nepa_jax.objectives.base import Features, Objective, encode

Leaf = jax.Array | np.ndarray


@dataclass(frozen=True, repr=False)
class Loaded:
    """A model, what it was trained to do, and the config of its run."""

    model: nnx.Module
    objective: Objective
    config: ConfigDict
    step: int | None = None  # of its training, where that is known
    resampling: str = "bicubic"  # of position tables, as its library does it: models/posemb.py

    def __repr__(self) -> str:
        model, method = self.config.model, self.config.objective.name.rpartition(".")[2]
        height, width = image_size(self.config)
        return (
            f"Loaded({method}: {model.depth} layers of width {model.embed_dim}, patch side "
            f"{model.patch_size}, images {height} x {width})"
        )

    def encode(self, images: ImagesLike, layer: int | None = -1) -> Features:
        """Features of images, all in one batch.

        Args:
            images: paths or PIL images, which are cut as in evaluation; or uint8 [B, H, W, C] with
                sides that are multiples of the patch side; or one image of these, or a list.
            layer: 0 is the embedding, -1 the last (normed), None all.

        Returns:
            float32 NumPy arrays ``patches`` [B, N, D], ``cls`` [B, D] or None, and ``grid``.

        Raises:
            UserError: these are no such images, or the layer does not exist.
        """
        if layer is not None and (
            isinstance(layer, bool) or not isinstance(layer, int | np.integer)
        ):
            raise UserError(f"layer = {layer!r}: give a whole number, or None for all layers")
        batch = as_batch(images, evaluation_data(self.config), self.config.model.patch_size)
        features = encode(self.objective, self.model, batch, None if layer is None else int(layer))
        patches, cls, grid = jax.tree.map(np.asarray, features)
        return Features(patches, cls, (int(grid[0]), int(grid[1])))


def placed(leaves: Mapping[str, Leaf], target: nnx.Module, path: str) -> nnx.Module:
    """A model of the leaves, each on the devices that it is on in ``target``.

    Args:
        leaves: by name, on the host or anywhere.
        target: a model of the same names and shapes.
        path: where they come from, for the error.

    Raises:
        UserError: they are of another model.
    """
    from nepa_jax.formats.fit import Fit, Misfit

    found, wanted = leaves, named_leaves(target)
    shapes = Fit(
        missing=sorted(wanted.keys() - found.keys()),
        unexpected=sorted(found.keys() - wanted.keys()),
        misshapen=[
            Misfit(name, tuple(found[name].shape), tuple(leaf.shape))
            for name, leaf in wanted.items()
            if name in found and found[name].shape != leaf.shape
        ],
    )
    shapes.require_complete(path)
    return with_leaves(target, {name: _like(found[name], leaf) for name, leaf in wanted.items()})


def _like(leaf: Leaf, target: jax.Array) -> jax.Array:
    """The same values where ``target`` lies; every host has them all."""
    values = np.asarray(leaf)
    return jax.make_array_from_callback(
        target.shape, target.sharding, lambda index: values[index].astype(target.dtype)
    )


def load(
    path: str, *, ema: bool = False, step: int | None = None, objective: str | None = None
) -> Loaded:
    """Opens a workdir, an exported folder, or another library's weights; see :func:`nepa_jax.load`.

    Raises:
        UserError: there are no such weights, they do not fit, or a file names an objective that is
            none of this package.
    """
    loaded = read(path, ema, step, objective)
    return replace(loaded, model=jax.device_put(loaded.model))


def read(
    path: str, ema: bool = False, step: int | None = None, objective: str | None = None
) -> Loaded:
    """As :func:`load`, with the weights wherever reading left them."""
    path = os.fspath(path)
    if not path or "://" in path:
        raise UserError(
            f"{path or 'the path'}: is {'a URL' if path else 'empty'}; give a folder or file on this "
            "machine (mount a bucket, or copy the weights)"
        )
    if (Path(path) / "checkpoints").is_dir() or is_checkpoint(epath.Path(path).absolute()):
        weights = load_weights(path, ema=ema, step=step, objective=objective)
        return Loaded(weights.model, weights.objective, weights.provenance.config, weights.step)
    from nepa_jax.formats.reading import read_model  # a run of its own needs none of them
    from nepa_jax.formats.sources import Choices, open_source

    source = open_source(path, choices=Choices(objective=objective))
    _require_asked(path, source.metadata, ema, step)
    model = jax.tree.map(np.asarray, read_model(source)[0])
    told = source.metadata.get("nepa_jax.step", "")
    known = int(told) if told.isdecimal() else None
    return Loaded(model, source.objective, source.config, known, source.format.resampling)


def _require_asked(path: str, holds: Mapping[str, str], ema: bool, step: int | None) -> None:
    """Raises UserError if files of one kind of weights, of one step, are asked for others."""
    weights = holds.get("nepa_jax.weights", "raw")
    if ema and weights != "ema":
        raise UserError(
            f"{path}: ema=True, and it holds the {weights} weights alone; load the workdir, or export "
            "the average with --ema"
        )
    if step is not None and str(step) != holds.get("nepa_jax.step"):
        raise UserError(
            f"{path}: step={step}, and it holds those of step {holds.get('nepa_jax.step', 'unknown')} "
            "alone; load the workdir, or export that step with --step"
        )
