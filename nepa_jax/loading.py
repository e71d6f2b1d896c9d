"""Trained weights in one line of Python: ``load(path).encode(images)``."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.checkpoint import is_checkpoint, load_trained
from nepa_jax.export.convert import Misfit, Report
from nepa_jax.export.importing import read_model
from nepa_jax.export.sources import open_source
from nepa_jax.objectives.base import Features, Objective, load_objective
from nepa_jax.trees import named_leaves, with_leaves


@dataclass(frozen=True)
class Loaded:
    """A model, what it was trained to do, and the config of its run."""

    model: nnx.Module
    objective: Objective
    config: ConfigDict

    def encode(self, images: np.ndarray, layer: int | None = -1) -> Features:
        """Features of a batch.

        Args:
            images: uint8 [B, H, W, C], sides multiples of the patch size.
            layer: 0 is the embedding, -1 the last (normed), None all.

        Returns:
            float32 NumPy arrays ``patches`` [B, N, D], ``cls`` [B, D] or None, and ``grid``.

        Raises:
            UserError: the layer does not exist.
        """
        patches, cls = _encode(self.objective, self.model, np.asarray(images), layer)
        side = self.model.vit.config.patch_size
        grid = images.shape[1] // side, images.shape[2] // side
        return Features(np.asarray(patches), None if cls is None else np.asarray(cls), grid)


@partial(jax.jit, static_argnames=("objective", "layer"))
def _encode(
    objective: Objective, model: nnx.Module, images: jax.Array, layer: int | None
) -> tuple[jax.Array, jax.Array | None]:
    features = objective.encode(model, images, layer)
    return features.patches, features.cls


def load_onto(path: str, target: nnx.Module) -> Loaded:
    """What is at ``path``, with the weights on the devices that ``target`` is on.

    Args:
        path: what :func:`load` opens.
        target: a model of the same names and shapes.

    Raises:
        UserError: there are no such weights, or they are of another model.
    """
    loaded = _read(path, ema=False, step=None)
    found, wanted = named_leaves(loaded.model), named_leaves(target)
    shapes = Report(
        missing=sorted(wanted.keys() - found.keys()),
        unexpected=sorted(found.keys() - wanted.keys()),
        misshapen=[
            Misfit(name, tuple(found[name].shape), tuple(leaf.shape))
            for name, leaf in wanted.items()
            if name in found and found[name].shape != leaf.shape
        ],
    )
    shapes.require_complete(path)
    placed = {name: _like(found[name], leaf) for name, leaf in wanted.items()}
    return replace(loaded, model=with_leaves(target, placed))


def _like(leaf: jax.Array | np.ndarray, target: jax.Array) -> jax.Array:
    """The same values where ``target`` lies; every host has them all."""
    values = np.asarray(leaf)
    return jax.make_array_from_callback(
        target.shape, target.sharding, lambda index: values[index].astype(target.dtype)
    )


def load(path: str, *, ema: bool = False, step: int | None = None) -> Loaded:
    """Opens a workdir, an exported folder, or another library's folder of a known format.

    Args:
        path: the folder; of a workdir also one checkpoint, ``WORKDIR/checkpoints/STEP``.
        ema: the averaged weights of a workdir; a folder holds one kind alone.
        step: which checkpoint of a workdir; None: the newest sound one.

    Raises:
        UserError: there are no such weights, or they do not fit.
    """
    loaded = _read(path, ema, step)
    return replace(loaded, model=jax.device_put(loaded.model))


def _read(path: str, ema: bool, step: int | None) -> Loaded:
    """With the weights wherever reading left them."""
    if (Path(path) / "checkpoints").is_dir() or is_checkpoint(epath.Path(path).absolute()):
        trained = load_trained(path, ema=ema, step=step)
        return Loaded(trained.model, trained.objective, trained.provenance.config)
    source = open_source(path)
    model = jax.tree.map(np.asarray, read_model(source)[0])
    return Loaded(model, load_objective(source.config.objective.name), source.config)
