"""Checkpoints by orbax: asynchronous, atomic, of plain arrays under the names of trees.py."""

import dataclasses
import json
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

import nepa_jax
from nepa_jax.config import flat_keys, from_json, to_json
from nepa_jax.errors import UserError
from nepa_jax.objectives.base import Objective, load_objective
from nepa_jax.step import TrainState
from nepa_jax.trees import named_leaves, with_leaves

# What makes a run this run: a resumed one may change all else (length, logging, mesh, dtype).
FIXED_KEYS = ("model.", "objective.", "run.seed", "data.batch_size", "data.split")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a checkpoint says of the run it belongs to."""

    config: ConfigDict
    fingerprint: str  # of the data set
    versions: Mapping[str, str]

    @classmethod
    def of(cls, config: ConfigDict, fingerprint: str) -> "Provenance":
        versions = {
            "nepa_jax": nepa_jax.__version__,
            "jax": jax.__version__,
            "orbax": ocp.__version__,
        }
        return cls(config, fingerprint, versions)

    def to_dict(self) -> dict[str, Any]:
        return dict(
            config=to_json(self.config), fingerprint=self.fingerprint, versions=dict(self.versions)
        )

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Provenance":
        return cls(from_json(saved["config"]), saved["fingerprint"], saved["versions"])


# A checkpoint's parts, so that weights can be read without the optimizer's state.
ITEMS = ("model", "ema", "rest")


def state_items(state: TrainState) -> dict[str, Any]:
    """The parts of a state that hold arrays, each as leaves by name."""
    rest = dataclasses.replace(state, model=None, ema=None)
    parts = {"model": state.model, "ema": state.ema, "rest": rest}
    return {item: leaves for item, part in parts.items() if (leaves := named_leaves(part))}


class Checkpoints:
    """The checkpoints of one workdir, at ``WORKDIR/checkpoints/STEP``."""

    def __init__(self, workdir: str, keep_last: int = 1, keep_every_steps: int = 0):
        keep = [policies.LatestN(keep_last)]
        if keep_every_steps:
            keep.append(policies.EveryNSteps(keep_every_steps))
        self.folder = epath.Path(workdir).absolute() / "checkpoints"
        handlers = {item: ocp.StandardCheckpointHandler() for item in ITEMS}
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers=handlers | {"meta": ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
            ),
        )

    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, provenance: Provenance) -> None:
        """Starts to save in the background; returns once the state may be changed."""
        if step in self._manager.all_steps():
            return
        items = {
            item: ocp.args.StandardSave(nest(leaves)) for item, leaves in state_items(state).items()
        }
        meta = ocp.args.JsonSave(provenance.to_dict())
        self._manager.save(step, args=ocp.args.Composite(**items, meta=meta), force=True)

    def provenance(self, step: int) -> Provenance:
        """What the checkpoint of a step says of its run."""
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return Provenance.from_dict(restored.meta)

    def restore(self, step: int, target: TrainState) -> TrainState:
        """The state of a step in the shapes and on the devices of ``target``.

        Raises:
            UserError: the checkpoint holds other arrays than the run's config makes.
        """
        wanted = state_items(target)
        found = self.restore_items(step, wanted)
        model = with_leaves(target.model, found["model"])
        ema = with_leaves(target.ema, found["ema"]) if "ema" in found else None
        rest = with_leaves(dataclasses.replace(target, model=None, ema=None), found["rest"])
        return dataclasses.replace(rest, model=model, ema=ema)

    def restore_model(self, step: int, target: nnx.Module) -> nnx.Module:
        """The weights of a step alone, in the shapes and on the devices of ``target``."""
        return with_leaves(
            target, self.restore_items(step, {"model": named_leaves(target)})["model"]
        )

    def restore_items(self, step: int, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Leaves by name of some of the parts, in the wanted shapes and shardings.

        Raises:
            UserError: the checkpoint holds other arrays.
        """
        metadata = self._manager.item_metadata(step)
        for item, leaves in wanted.items():
            self._check_arrays(step, leaves, getattr(metadata, item, None))
        args = {item: ocp.args.StandardRestore(nest(leaves)) for item, leaves in wanted.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {item: named_leaves(getattr(restored, item)) for item in wanted}

    def _check_arrays(self, step: int, wanted: Mapping[str, Any], saved: Any) -> None:
        shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(saved).items()}
        differing = sorted(
            name
            for name in wanted.keys() | shapes.keys()
            if name not in wanted or shapes.get(name) != tuple(wanted[name].shape)
        )
        if differing:
            raise UserError(
                f"checkpoint {self.folder / str(step)} holds other arrays than this config makes: "
                f"{', '.join(differing[:5])}; use the config it was made with, or another --workdir"
            )

    def wait(self) -> None:
        """Returns when everything is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Trained(NamedTuple):
    """Weights of a run and what belongs to them."""

    model: nnx.Module
    objective: Objective
    provenance: Provenance
    step: int


def load_trained(workdir: str, *, ema: bool) -> Trained:
    """The newest weights of a run, raw or averaged, on one device.

    Raises:
        UserError: no checkpoint there, or no average was kept.
    """
    if not (epath.Path(workdir) / "checkpoints").is_dir():
        raise UserError(f"{workdir}: holds no checkpoints; give the --workdir of a pretraining run")
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
            raise UserError(f"{workdir}: holds no complete checkpoint yet; wait for the first one")
        provenance = checkpoints.provenance(step)
        config = provenance.config
        if ema and config.optim.ema_decay is None:
            raise UserError(
                f"{workdir}: this run kept no average (optim.ema_decay = none); leave out --ema"
            )
        objective = load_objective(config.objective.name)
        shapes = jax.eval_shape(lambda: objective.init_model(config, nnx.Rngs(0)))
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        target = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
            for name, leaf in named_leaves(shapes).items()
        }
        item = "ema" if ema else "model"
        leaves = checkpoints.restore_items(step, {item: target})[item]
        return Trained(with_leaves(shapes, leaves), objective, provenance, step)


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``."""
    nested: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return nested


def check_same_run(saved: Provenance, current: Provenance, workdir: str) -> list[str]:
    """Lists harmless changes since a checkpoint as ``key: old -> new``.

    Raises:
        UserError: the config is of another run, or the data set is another one.
    """
    changes = config_changes(saved.config, current.config)
    fixed = {key: change for key, change in changes.items() if key.startswith(FIXED_KEYS)}
    if fixed:
        raise UserError(
            f"workdir {workdir!r} holds another run: {'; '.join(fixed.values())}; "
            "set these back, or give another --workdir"
        )
    if saved.fingerprint != current.fingerprint and not current.config.run.allow_data_change:
        raise UserError(
            f"data.path = {current.config.data.path}: this data set (fingerprint "
            f"{current.fingerprint[:12]}) is not the one of the checkpoint in {workdir!r} "
            f"({saved.fingerprint[:12]}); give that one, another --workdir, or accept the change "
            "with --config.run.allow_data_change=true"
        )
    return list(changes.values())


def config_changes(old: ConfigDict, new: ConfigDict) -> dict[str, str]:
    """Keys whose values differ, each with a text that shows both."""
    before, after = flat_keys(old), flat_keys(new)
    return {
        key: f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }
