"""One checkpoint on disk, of which every array is proven by its checksum."""

import gc
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.base.threads import ordered_map
from nepa_jax.base.trees import named_leaves
from nepa_jax.checkpoint.arrays import SavedArray, open_arrays
from nepa_jax.checkpoint.checksums import checksum, checksums
from nepa_jax.checkpoint.meta import Damaged, Held, Leaves, Meta
from nepa_jax.hosts.agree import say

PIECE_BYTES = 2**25  # of an array, and of a file: it is written out while others are copied
MIN_PIECE_BYTES = 2**20  # smaller rows lie together
BATCH_BYTES = 2**28  # What is read at once is twice in memory: as it comes and as arrays.
T = TypeVar("T")


@dataclass(frozen=True)
class Saved:
    """The checkpoint in a folder ``…/STEP``, which is only read."""

    folder: epath.Path

    @property
    def step(self) -> int:
        return int(self.folder.name)

    def meta(self) -> Meta:
        """Raises Damaged, on all hosts alike."""
        return on_all_hosts("meta", self._meta)

    def _meta(self) -> Meta:
        return Meta.from_json(ocp.JsonCheckpointHandler().restore(self.folder / "meta"))

    def arrays(self, meta: Meta, part: str, wanted: Leaves) -> dict[str, jax.Array]:
        """The leaves of a part in the wanted shapes, dtypes and shardings.

        Raises:
            UserError: the checkpoint holds other arrays.
            Damaged: it does not hold what was saved, on all hosts alike.
        """
        held = self._held(meta, part, wanted)
        found = on_all_hosts(part, lambda: self._read(part, wanted))
        wrong = [
            name
            for name, sums in zip(sorted(found), np.asarray(checksums(found)), strict=True)
            if Held.of(found[name], sums) != held[name]
        ]
        _agree(f"{part}/{wrong[0]} is not what was saved" if wrong else "")
        return found

    def arrays_on_disk(self, meta: Meta, part: str, wanted: Leaves) -> dict[str, SavedArray]:
        """The leaves of a part, each proven when it is read.

        Raises:
            UserError: the checkpoint holds other arrays.
            Damaged: one of them is not there, or another one is; on all hosts alike.
        """
        held = self._held(meta, part, wanted)
        return on_all_hosts(part, lambda: self._open(part, held))

    def _open(self, part: str, held: Mapping[str, Held]) -> dict[str, SavedArray]:
        found = open_arrays(self.folder / "arrays", {f"{part}/{name}": held[name] for name in held})
        return {name: found[f"{part}/{name}"] for name in held}

    def _read(self, part: str, wanted: Leaves) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        for batch in batches(wanted, BATCH_BYTES):
            found |= self._read_batch(part, batch)
        return found

    def _read_batch(self, part: str, wanted: Leaves) -> dict[str, jax.Array]:
        # Without orbax's barriers: a host that cannot read must not keep the others waiting.
        tree = {part: nest(wanted)}
        how = jax.tree.map(_restore_args, tree)
        args = ocp.args.PyTreeRestore(item=tree, restore_args=how, partial_restore=True)
        found = array_handler().restore(self.folder / "arrays", args=args)[part]
        return named_leaves(found)

    def _held(self, meta: Meta, part: str, wanted: Leaves) -> Mapping[str, Held]:
        """Raises UserError unless these arrays make up the part."""
        held = meta.arrays.get(part, {})
        differing = sorted(
            name
            for name in wanted.keys() | held.keys()
            if name not in wanted or name not in held or not held[name].holds(wanted[name])
        )
        if differing:
            raise UserError(
                f"checkpoint {self.folder} holds other arrays than this config makes: "
                f"{', '.join(differing[:5])}; use the config it was made with, or another --workdir"
            )
        return held


class InTurn:
    """A leaf to be saved that is made when its turn comes, and gone once it is written."""

    def __init__(self, leaf: Any):
        self.shape, self.dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
        self._leaf = leaf

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        values = np.asarray(self._leaf)
        self._sums = checksum(values)
        return values

    def held(self) -> Held:
        """What was saved, once it was."""
        return Held.of(self, self._sums)


class InTurnHandler(ocp.type_handlers.NumpyHandler):
    """Writes one after the other; the next is made meanwhile."""

    async def serialize(
        self,
        values: Sequence[InTurn],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> Sequence[Any]:
        for array, info, arg in zip(ordered_map(np.asarray, values, 1), infos, args, strict=True):
            for written in await super().serialize([array], [info], [arg]):
                written.result()
        return []


# Replicas share the writing of an array, but a small one is not worth a compiled slice for each.
ARRAY_TYPES = ocp.type_handlers.create_type_handler_registry(
    (InTurn, InTurnHandler(deepcopy_host_arrays=False)),
    (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**18)),
)


def array_handler() -> ocp.PyTreeCheckpointHandler:
    """Reads and writes arrays as they are: packing float32 saves 8 % and takes ten times as long."""
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=ARRAY_TYPES)


def save_arrays(parts: Mapping[str, Leaves]) -> ocp.args.PyTreeSave:
    """Arrays to be saved, in pieces that are read one after the other."""
    tree = {part: nest(leaves) for part, leaves in parts.items()}
    pieces = jax.tree.map(_in_pieces, tree)
    return ocp.args.PyTreeSave(tree, pieces, ocdbt_target_data_file_size=PIECE_BYTES)


def _in_pieces(leaf: jax.Array | InTurn) -> ocp.SaveArgs:
    """Of whole rows, if these are large: a stack of layers is exported layer by layer."""
    ours = leaf.sharding.shard_shape(leaf.shape) if isinstance(leaf, jax.Array) else leaf.shape
    large = math.prod(ours[1:]) * leaf.dtype.itemsize >= MIN_PIECE_BYTES
    return ocp.SaveArgs(chunk_byte_size=PIECE_BYTES, shard_axes=(0,) if large else ())


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    return ocp.ArrayRestoreArgs(sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype)


def batches(leaves: Leaves, limit: int) -> Iterator[dict[str, Any]]:
    """Consecutive leaves together up to ``limit`` bytes; a larger one is a batch by itself."""
    batch: dict[str, Any] = {}
    size = 0
    for name, leaf in leaves.items():
        more = math.prod(leaf.shape) * leaf.dtype.itemsize
        if batch and size + more > limit:
            yield batch
            batch, size = {}, 0
        batch[name] = leaf
        size += more
    if batch:
        yield batch


def on_all_hosts(what: str, read: Callable[[], T]) -> T:
    """What this host reads, once all hosts could; else Damaged on all of them."""
    with _quiet():
        result, problem = _attempt(what, read)
        if problem:  # the reads that orbax has abandoned come to their end
            time.sleep(0.05)
            gc.collect()
    _agree(problem)
    return result


def _attempt(what: str, read: Callable[[], T]) -> tuple[T | None, str]:
    """What is read and "", or None and why it cannot be."""
    try:
        return read(), ""
    except Damaged as error:
        return None, str(error)
    except Exception as error:  # orbax and its storage raise errors of any kind
        return None, f"{what} cannot be read: {in_short(error)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the complaints of abandoned reads, in threads and destructors, off the terminal.

    Where one array cannot be read, orbax closes the event loop on all others under way.
    """
    hooks = sys.excepthook, sys.unraisablehook
    sys.excepthook = sys.unraisablehook = lambda *_: None
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks


def _agree(problem: str) -> None:
    """Raises Damaged on all hosts with the first problem that one of them has, if one has any."""
    row = np.zeros(256, np.uint8)
    text = np.frombuffer(problem.encode()[: row.size], np.uint8)
    row[: text.size] = text
    rows = np.asarray(multihost_utils.process_allgather(row)).reshape(-1, row.size)
    problems = [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in rows]
    if any(problems):
        raise Damaged(next(filter(None, problems)))


@dataclass
class Sound(Generic[T]):
    """What was read from the newest sound checkpoint, and what is wrong with newer ones."""

    saved: Saved
    value: T
    damaged: dict[Saved, str] = field(default_factory=dict)

    def warning(self) -> str:
        """One line on the damaged ones; "" if there are none."""
        if not self.damaged:
            return ""
        problems = "; ".join(f"{saved.folder}: {why}" for saved, why in self.damaged.items())
        lost = max(self.damaged, key=lambda saved: saved.step).step - self.saved.step
        return (
            f"damaged checkpoint {problems}; "
            f"using that of step {self.saved.step}, {lost:,} steps before"
        )


def newest_sound(candidates: Iterable[Saved], read: Callable[[Saved], T]) -> Sound[T]:
    """Reads the newest checkpoint that ``read`` does not find damaged.

    Raises:
        UserError: there is none.
    """
    damaged: dict[Saved, str] = {}
    for saved in sorted(candidates, key=lambda saved: saved.step, reverse=True):
        try:
            return Sound(saved, read(saved), damaged)
        except Damaged as error:
            damaged[saved] = str(error)
    problems = "; ".join(f"{saved.folder}: {why}" for saved, why in damaged.items())
    raise UserError(
        f"no checkpoint is sound ({problems}); bring one back from a copy, or start again in "
        "another --workdir"
    )


def checkpoints_in(folder: epath.Path) -> list[Saved]:
    """The complete checkpoints of a folder ``WORKDIR/checkpoints``, oldest first."""
    if not folder.is_dir():
        return []
    found = [Saved(path) for path in folder.iterdir() if path.name.isdigit()]
    complete = [saved for saved in found if ocp.utils.is_checkpoint_finalized(saved.folder)]
    return sorted(complete, key=lambda saved: saved.step)


def nest(leaves: Leaves) -> dict[str, Any]:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``."""
    nested: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return nested


def from_newest_sound(path: str, step: int | None, read: Callable[[Saved], T]) -> T:
    """What ``read`` makes of the newest checkpoint that it does not find damaged.

    Others are told in one line. For arguments and errors see :func:`load_trained`.
    """
    sound = newest_sound(find_saved(path, step), read)
    if sound.damaged:
        say(f"warning: {sound.warning()}")
    return sound.value


def find_saved(path: str, step: int | None) -> list[Saved]:
    """The checkpoint at ``path``, or those in the workdir there: of one step, or all.

    Raises:
        UserError: there is none.
    """
    folder = epath.Path(path).absolute()
    if is_checkpoint(folder):
        found = [saved for saved in checkpoints_in(folder.parent) if saved.folder == folder]
    else:
        found = checkpoints_in(folder / "checkpoints")
    if not found:
        raise UserError(
            f"{path}: holds no complete checkpoint; give the --workdir of a pretraining run, or "
            "WORKDIR/checkpoints/STEP"
        )
    chosen = [saved for saved in found if step in (None, saved.step)]
    if not chosen:
        steps = ", ".join(str(saved.step) for saved in found)
        raise UserError(f"{path}: holds no checkpoint of step {step}; choose from {steps}")
    return chosen


def is_checkpoint(folder: epath.Path) -> bool:
    """Whether this is the place of one checkpoint, not a workdir."""
    return folder.parent.name == "checkpoints" and folder.name.isdigit()


def workdir_of(path: str) -> epath.Path:
    """The workdir that a path given to :func:`load_trained` belongs to."""
    folder = epath.Path(path).absolute()
    return folder.parent.parent if is_checkpoint(folder) else folder


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
