"""The weights in a checkpoint alone, to encode, export or begin a run with."""

import shutil
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.checkpoint.meta import Meta, Provenance
from nepa_jax.checkpoint.reading import (
    InTurn,
    Saved,
    array_handler,
    from_newest_sound,
    on_all_hosts,
    orbax_is_quiet,
    save_arrays,
)
from nepa_jax.objectives.base import Objective, saved_objective


class Trained(NamedTuple):
    """Weights of a run and what belongs to them."""

    model: nnx.Module
    objective: Objective
    provenance: Provenance
    step: int


def load_trained(
    path: str, *, ema: bool, step: int | None = None, objective: str | None = None
) -> Trained:
    """Weights of a run, raw or averaged, as NumPy arrays. Nothing in the workdir is changed.

    Args:
        path: a workdir, or one of its checkpoints ``WORKDIR/checkpoints/STEP``.
        ema: the averaged weights.
        step: of the checkpoint in a workdir; None: the newest sound one.
        objective: a module of the user's own; see :func:`saved_objective`.

    Raises:
        UserError: no such checkpoint, none that is sound, or no average was kept.
    """
    return from_newest_sound(
        path, step, lambda saved: _in_memory(open_trained(saved, ema, objective))
    )


def open_trained(saved: Saved, ema: bool, chosen: str | None = None) -> Trained:
    """The weights of a checkpoint, which stay on disk: its leaves are :class:`SavedArray`.

    Raises:
        UserError: no average was kept, or the objective must be ``chosen`` by the user.
        Damaged: an array is not there.
    """
    meta = saved.meta()
    config = meta.provenance.config
    if ema and "ema" not in meta.arrays:
        raise UserError(
            f"{saved.folder}: holds no average (its run has optim.ema_decay = none, or it was "
            "imported); leave out --ema"
        )
    objective = saved_objective(config, str(saved.folder), chosen)
    shapes = jax.eval_shape(lambda: objective.init_model(config, nnx.Rngs(0)))
    leaves = saved.arrays_on_disk(meta, "ema" if ema else "model", named_leaves(shapes))
    return Trained(with_leaves(shapes, leaves), objective, meta.provenance, saved.step)


def _in_memory(trained: Trained) -> Trained:
    """Raises Damaged, on all hosts alike."""
    model = on_all_hosts("the weights", lambda: jax.tree.map(np.asarray, trained.model))
    return trained._replace(model=model)


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
        with orbax_is_quiet():
            _write_weights(unnamed, model, provenance)
        folder.parent.mkdir(exist_ok=True)
        unnamed.rename(folder)
    except UserError:  # a leaf could not be made
        raise
    except Exception as error:  # orbax passes on whatever the storage raises
        raise UserError(
            f"{folder}: cannot be saved ({in_short(error)}); free space there or allow writing"
        ) from error
    finally:  # orbax's threads may outlive a failure, and what they leave the next call removes
        shutil.rmtree(unnamed.parent, ignore_errors=True)


def _write_weights(folder: epath.Path, model: nnx.Module, provenance: Provenance) -> None:
    """First the arrays, since their checksums are known when they have been made."""
    leaves = {name: InTurn(leaf) for name, leaf in named_leaves(model).items()}
    arrays = ocp.args.Composite(arrays=save_arrays({"model": leaves}))
    handler = ocp.CompositeCheckpointHandler(arrays=array_handler())
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=arrays)
    held = {name: leaf.held() for name, leaf in leaves.items()}
    meta = ocp.args.JsonSave(Meta(provenance, {"model": held}).to_json())
    (folder / "meta").mkdir()
    ocp.JsonCheckpointHandler().save(folder / "meta", args=meta)
