"""Checkpoints by orbax: asynchronous, atomic, of plain arrays under the names of trees.py."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

import nepa_jax
from nepa_jax.config import flat_keys, from_json, to_json
from nepa_jax.errors import UserError
from nepa_jax.step import TrainState
from nepa_jax.trees import named_leaves, with_leaves

log = logging.getLogger(__name__)

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
        versions = {"nepa_jax": nepa_jax.__version__, "jax": jax.__version__, "orbax": ocp.__version__}
        return cls(config, fingerprint, versions)

    def to_dict(self) -> dict[str, Any]:
        return dict(config=to_json(self.config), fingerprint=self.fingerprint, versions=dict(self.versions))

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> "Provenance":
        return cls(from_json(saved["config"]), saved["fingerprint"], saved["versions"])


class Checkpoints:
    """The checkpoints of one workdir, at ``WORKDIR/checkpoints/STEP``."""

    def __init__(self, workdir: str, keep_last: int = 1, keep_every_steps: int = 0):
        keep = [policies.LatestN(keep_last)]
        if keep_every_steps:
            keep.append(policies.EveryNSteps(keep_every_steps))
        self.folder = epath.Path(workdir).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
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
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(nest(named_leaves(state))),
                meta=ocp.args.JsonSave(provenance.to_dict()),
            ),
            force=True,
        )

    def provenance(self, step: int) -> Provenance:
        """What the checkpoint of a step says of its run."""
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return Provenance.from_dict(restored.meta)

    def restore(self, step: int, target: TrainState) -> TrainState:
        """Arrays of a step in the shapes and on the devices of ``target``.

        Raises:
            UserError: the checkpoint holds other arrays than the run's config makes.
        """
        wanted = named_leaves(target)
        self._check_arrays(step, wanted)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(nest(wanted)))
        )
        return with_leaves(target, named_leaves(restored.state))

    def _check_arrays(self, step: int, wanted: Mapping[str, Any]) -> None:
        saved = named_leaves(self._manager.item_metadata(step).state.tree)
        shapes = {name: tuple(leaf.shape) for name, leaf in saved.items()}
        differing = sorted(
            name for name in wanted.keys() | shapes.keys()
            if name not in wanted or shapes.get(name) != tuple(wanted[name].shape)
        )  # fmt: skip
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
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
