"""The checkpoints of a run by orbax: asynchronous, atomic, of arrays under the names of trees.py."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from types import TracebackType

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers as policies

from nepa_jax.base.errors import UserError, in_short, storage_error
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.checkpoint.arrays import array_handler, save_arrays
from nepa_jax.checkpoint.meta import Leaves, Meta, Provenance
from nepa_jax.checkpoint.reading import Checkpoint, checkpoints_in, newest_sound
from nepa_jax.config import flat_keys
from nepa_jax.hosts.agree import compare_hosts, from_first_host, say
from nepa_jax.step import TrainState, zeros_at

# What makes a run this run: a resumed one may change all else (length, logging, mesh, dtype).
FIXED_KEYS = ("model.", "objective.", "run.seed", "data.batch_size", "data.split")


def state_parts(state: TrainState) -> dict[str, Leaves]:
    """The parts of a state that hold arrays, each as leaves by name.

    Weights can be read without the optimizer's state, and a state without its heads that watch.
    """
    rest = dataclasses.replace(state, model=None, ema=None, heads=None)
    parts = {"model": state.model, "ema": state.ema, "heads": state.heads, "rest": rest}
    return {part: leaves for part, tree in parts.items() if (leaves := named_leaves(tree))}


@dataclasses.dataclass(frozen=True)
class These(policies.PreservationPolicy):
    """Keeps the checkpoints of some steps, as long as they are in the set."""

    steps: set[int]

    def should_preserve(
        self,
        checkpoints: Sequence[policies.PolicyCheckpointInfo],
        *,
        context: policies.PreservationContext,
    ) -> Sequence[bool]:
        return [checkpoint.step in self.steps for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of the run in a workdir, at ``WORKDIR/checkpoints/STEP``.

    That of step 0 holds imported weights alone; a run saves from step 1 on.
    """

    def __init__(self, workdir: str, keep_last: int = 1, keep_every_steps: int = 0):
        if keep_last < 1:
            raise ValueError(f"keep_last = {keep_last}: a run keeps one checkpoint at least")
        keep = [policies.LatestN(keep_last)]
        if keep_every_steps:
            keep.append(policies.EveryNSteps(keep_every_steps))
        self.also_kept: set[int] = set()  # steps
        keep.append(These(self.also_kept))
        self.folder = epath.Path(workdir).absolute() / "checkpoints"
        self.saved_step = 0  # of the newest that is complete, as far as this start knows
        self._newest = 0  # restored, or handed to orbax
        self._cut_off = half_written(self.folder)  # which the manager removes
        with ExitStack() as quiet:
            quiet.enter_context(orbax_is_quiet())
            with self._clear_errors():
                self._manager = self._new_manager(keep)
            self._quiet = quiet.pop_all()

    def _new_manager(self, keep: list[policies.PreservationPolicy]) -> ocp.CheckpointManager:
        waiting = ocp.options.AsyncOptions(
            barrier_sync_fn=meet_unless_failed, post_finalization_callback=self._note_saved
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
            async_options=waiting,
        )
        handlers = {"arrays": array_handler(), "meta": ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(self.folder, item_handlers=handlers, options=options)

    def _note_saved(self) -> None:
        self.saved_step = self._newest

    @cached_property
    def listed(self) -> list[int]:
        """The steps of complete checkpoints when the run began, as the first host saw them.

        Raises:
            UserError: another host does not see them.
        """
        steps = json.loads(
            from_first_host(lambda: json.dumps([one.step for one in checkpoints_in(self.folder)]))
        )
        seen = [step for step in steps if (self.folder / str(step)).is_dir()]
        compare_hosts({f"what is in {self.folder}": str(seen)})
        return steps

    def hold_weights(self) -> bool:
        """Whether there are imported weights to begin the run with."""
        return 0 in self.listed

    def save(self, step: int, state: TrainState, provenance: Provenance) -> None:
        """Starts to save in the background; returns once the state may be changed.

        Raises:
            UserError: this or the previous save failed.
        """
        if step == self._newest:
            return
        # The copy to the host waits for it too. Host devices could block one another otherwise.
        parts = jax.block_until_ready(state_parts(state))
        with self._clear_errors():
            self._try_to_write()
            meta = Meta.of(provenance, parts)  # before orbax writes: beside it sums take longer
            self._manager.wait_until_finished()  # whose step is noted
            self._newest = step
            # The parts as one tree: orbax begins to write it once it is copied, beside the next copy.
            contents = dict(arrays=save_arrays(parts), meta=ocp.args.JsonSave(meta.to_json()))
            self._manager.save(step, args=ocp.args.Composite(**contents), force=True)

    def _try_to_write(self) -> None:
        """Raises OSError where nothing can be written: orbax would go on to wait for minutes."""
        if jax.process_index() == 0:
            probe = self.folder / ".write-test"
            self.folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()

    def check(self) -> None:
        """Raises UserError if the save in the background has failed; does not wait for it."""
        with self._clear_errors():
            if not self._manager.is_saving_in_progress():
                self._manager.wait_until_finished()  # at once; orbax keeps the error for this call

    def wait(self) -> None:
        """Returns when everything is on disk. Raises UserError if it cannot be."""
        with self._clear_errors():
            self._manager.wait_until_finished()

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax passes on whatever its threads and the storage raise
            raise storage_error(
                f"{self.folder}: a checkpoint cannot be saved ({in_short(error)}); free space there or "
                "allow writing, then give the same command again: it goes on from the last checkpoint",
                error,
            ) from error

    def restore_latest(
        self, target: TrainState, check: Callable[[Provenance], object]
    ) -> tuple[TrainState, Checkpoint] | None:
        """The state of the newest sound checkpoint, and that; None if the run has saved none yet.

        Damaged ones are told in one line and renamed to ``STEP.damaged``, so that their steps can
        be saved again. With no sound one, nothing is renamed.

        Args:
            target: shapes and shardings.
            check: raises if a checkpoint of this provenance must not be resumed.

        Raises:
            UserError: none is sound, or it holds other arrays than ``target``.
        """

        def resume(checkpoint: Checkpoint) -> tuple[TrainState, Checkpoint]:
            check(checkpoint.meta.provenance)
            return read_state(checkpoint, target), checkpoint

        candidates = [Checkpoint(self.folder / str(step)) for step in self.listed if step > 0]
        if self._cut_off:
            say(f"warning: the save of {', '.join(self._cut_off)} was cut off; it is removed")
        if not candidates:
            return None
        note = "; the damaged one is kept as STEP.damaged"
        state, resumed = newest_sound(candidates, resume, note)
        self._set_aside([one for one in candidates if one.step > resumed.step])
        self._newest = self.saved_step = resumed.step
        return state, resumed

    def _set_aside(self, damaged: Sequence[Checkpoint]) -> None:
        if not damaged:
            return
        if jax.process_index() == 0:
            for checkpoint in damaged:
                aside = checkpoint.folder.with_name(f"{checkpoint.folder.name}.damaged")
                if aside.exists():
                    aside.rmtree()
                checkpoint.folder.rename(aside)
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        self._manager.reload()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A failed save is raised again by close(); the error under way says it better.
        with self._quiet, suppress(Exception) if error else self._clear_errors():
            self._manager.close()


def read_state(checkpoint: Checkpoint, target: TrainState) -> TrainState:
    """A saved state in the shapes and on the devices of ``target``.

    Where the run kept no average and is to keep one now, it begins with the weights; heads that watch
    begin with zeros where it had none, or others.

    Raises:
        UserError: the checkpoint holds other arrays.
        Damaged: it is not what was saved.
    """
    wanted = state_parts(target)
    heads = _read_heads(checkpoint, wanted.pop("heads", {}))
    begins = "ema" in wanted and "ema" not in checkpoint.meta.leaves
    if begins:
        del wanted["ema"]
    leaves = {part: checkpoint.leaves(part, arrays) for part, arrays in wanted.items()}
    if begins:
        leaves["ema"] = {name: jnp.copy(leaf) for name, leaf in leaves["model"].items()}
        say(f"the average (optim.ema_decay) begins with the weights of step {checkpoint.step}")
    model = with_leaves(target.model, leaves["model"])
    ema = with_leaves(target.ema, leaves["ema"]) if "ema" in leaves else None
    bare = dataclasses.replace(target, model=None, ema=None, heads=None)
    rest = with_leaves(bare, leaves["rest"])
    return dataclasses.replace(rest, model=model, ema=ema, heads=with_leaves(target.heads, heads))


def _read_heads(checkpoint: Checkpoint, wanted: Leaves) -> dict[str, jax.Array]:
    """Raises Damaged if they are there, and not what was saved."""
    saved = checkpoint.meta.leaves.get("heads", {})
    if saved.keys() == wanted.keys() and all(saved[name].fits(wanted[name]) for name in wanted):
        return checkpoint.leaves("heads", wanted) if wanted else {}
    if not wanted:
        return {}
    why = "others" if saved else "none"
    say(
        f"linear heads (evals.online) begin anew: the checkpoint of step {checkpoint.step} has {why}"
    )
    return zeros_at(wanted)


def meet_unless_failed(*, key: str, timeout_ms: int) -> None:
    """Where orbax's threads wait for all hosts. One that failed to write passes, to say so at once.

    The others wait for it at another barrier, which its end will break.
    """
    if sys.exception() is None:
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def half_written(folder: epath.Path) -> list[str]:
    """The steps of saves that were cut off, as ``step N``."""
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if ocp.utils.is_tmp_checkpoint(path)]
    return sorted(f"step {name.partition('.')[0]}" for name in names)


def check_same_run(saved: Provenance, current: Provenance, workdir: str) -> list[str]:
    """Lists harmless changes since a checkpoint as ``key: old -> new``.

    Raises:
        UserError: the config is of another run, or the data set is another one.
    """
    changes = config_changes(saved.config, current.config)
    fixed = {key: change for key, change in changes.items() if key.startswith(FIXED_KEYS)}
    if fixed:
        raise UserError(
            f"workdir {workdir!r} holds another run: {'; '.join(fixed.values())}; set these back, or "
            f"give another --workdir, with --config.run.init_from={workdir} to begin with its weights"
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


@contextmanager
def orbax_is_quiet() -> Iterator[None]:
    """Orbax logs, with its traceback, every error that it raises as well."""

    def not_of_orbax(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    log = logging.getLogger("absl")
    log.addFilter(not_of_orbax)
    try:
        yield
    finally:
        log.removeFilter(not_of_orbax)
