"""The weights in a checkpoint alone, to encode, export or begin a run with."""

import json
import shutil
from typing import NamedTuple

import jax
import numpy as np
from etils import epath
from flax import nnx

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.checkpoint.arrays import write_part
from nepa_jax.checkpoint.meta import Meta, Provenance
from nepa_jax.checkpoint.reading import Checkpoint, find_checkpoints, newest_sound, on_all_hosts
from nepa_jax.objectives.base import Objective, abstract_model, saved_objective


class Weights(NamedTuple):
    """A model of a run, raw or averaged, and what belongs to them."""

    model: nnx.Module
    objective: Objective
    provenance: Provenance
    step: int


def load_weights(
    path: str, *, ema: bool, step: int | None = None, objective: str | None = None
) -> Weights:
    """Weights of a run, raw or averaged, as NumPy arrays. Nothing in the workdir is changed.

    Args:
        path: a workdir, or one of its checkpoints ``WORKDIR/checkpoints/STEP``.
        ema: the averaged weights.
        step: of the checkpoint in a workdir; None: the newest sound one.
        objective: a module of the user's own; see :func:`saved_objective`.

    Raises:
        UserError: no such checkpoint, none that is sound, or no average was kept.
    """
    return newest_sound(
        find_checkpoints(path, step),
        lambda checkpoint: _in_memory(open_weights(checkpoint, ema, objective)),
    )


def open_weights(checkpoint: Checkpoint, ema: bool, chosen: str | None = None) -> Weights:
    """The weights of a checkpoint, which stay on disk: its leaves are :class:`LazyArray`.

    Raises:
        UserError: no average was kept, or the objective must be ``chosen`` by the user.
        Damaged: an array is not there.
    """
    meta = checkpoint.meta
    config = meta.provenance.config
    if ema and "ema" not in meta.leaves:
        raise UserError(
            f"{checkpoint.folder}: holds no average (its run has optim.ema_decay = none, or it was "
            "imported); take the raw weights: leave out --ema, or run.init_ema=false"
        )
    objective = saved_objective(config, str(checkpoint.folder), chosen)
    shapes = abstract_model(objective.init_model, config)
    leaves = checkpoint.lazy_leaves("ema" if ema else "model", named_leaves(shapes))
    return Weights(with_leaves(shapes, leaves), objective, meta.provenance, checkpoint.step)


def _in_memory(weights: Weights) -> Weights:
    """Raises Damaged, on all hosts alike."""
    model = on_all_hosts("the weights", lambda: jax.tree.map(np.asarray, weights.model))
    return weights._replace(model=model)


def save_weights(workdir: str, step: int, model: nnx.Module, provenance: Provenance) -> None:
    """Writes a checkpoint of weights alone, without optimizer or average; returns when it is there.

    Args:
        workdir: the checkpoint appears there whole or not at all.
        step: its name.
        model: its leaves may be anything that ``np.asarray`` makes an array of; it is asked in turn.
        provenance: of the run they belong to.

    Raises:
        UserError: it cannot be written.
    """
    folder = epath.Path(workdir).absolute() / "checkpoints" / str(step)
    unnamed = folder.parent.with_name(".checkpoints.tmp") / folder.name
    shutil.rmtree(unnamed.parent, ignore_errors=True)
    try:
        _write_weights(unnamed, model, provenance)
        folder.parent.mkdir(exist_ok=True)
        unnamed.rename(folder)
    except UserError:  # a leaf could not be made
        raise
    except Exception as error:  # storage raises errors of any kind
        raise UserError(
            f"{folder}: cannot be saved ({in_short(error)}); free space there or allow writing"
        ) from error
    finally:  # a write may outlive a failure, and what it leaves the next call removes
        shutil.rmtree(unnamed.parent, ignore_errors=True)


def _write_weights(folder: epath.Path, model: nnx.Module, provenance: Provenance) -> None:
    """First the arrays, since their checksums are known when they have been made."""
    meta = Meta(provenance, {"model": write_part(folder / "arrays", "model", named_leaves(model))})
    (folder / "meta").mkdir()
    (folder / "meta" / "metadata").write_text(json.dumps(meta.to_json()))
