"""One checkpoint on disk, of which every array is proven by its checksum."""

import gc
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from nepa_jax.checksums import checksums
from nepa_jax.errors import UserError
from nepa_jax.meta import NONE_HELD, Damaged, Leaves, Meta, Shapes, shapes_of
from nepa_jax.trees import named_leaves

PIECE_BYTES = 2**26
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
        return _on_all_hosts("meta", self._meta)

    def _meta(self) -> Meta:
        return Meta.from_json(ocp.JsonCheckpointHandler().restore(self.folder / "meta"))

    def arrays(self, meta: Meta, part: str, wanted: Leaves) -> dict[str, jax.Array | np.ndarray]:
        """The leaves of a part in the wanted shapes, dtypes and shardings.

        Those without a sharding come as NumPy arrays, which takes the least memory.

        Raises:
            UserError: the checkpoint holds other arrays.
            Damaged: it does not hold what was saved, on all hosts alike.
        """
        held = meta.arrays.get(part, NONE_HELD)
        self._require(wanted, held.shapes)
        found = _on_all_hosts(part, lambda: self._read(part, wanted))
        proven = np.all(np.asarray(checksums(found)) == held.sums, axis=1)
        wrong = [name for name, same in zip(sorted(found), proven, strict=True) if not same]
        _agree(f"{part}/{wrong[0]} is not what was saved" if wrong else "")
        return found

    def _read(self, part: str, wanted: Leaves) -> dict[str, jax.Array | np.ndarray]:
        found: dict[str, jax.Array | np.ndarray] = {}
        for batch in batches(wanted, BATCH_BYTES):
            found |= self._read_batch(part, batch)
        return found

    def _read_batch(self, part: str, wanted: Leaves) -> dict[str, jax.Array | np.ndarray]:
        # Without orbax's barriers: a host that cannot read must not keep the others waiting.
        tree = {part: nest(wanted)}
        how = jax.tree.map(_restore_args, tree)
        args = ocp.args.PyTreeRestore(item=tree, restore_args=how, partial_restore=True)
        found = array_handler().restore(self.folder / "arrays", args=args)[part]
        return named_leaves(found)

    def _require(self, wanted: Leaves, held: Shapes) -> None:
        made = shapes_of(wanted)
        differing = sorted(
            name for name in made.keys() | held.keys() if made.get(name) != held.get(name)
        )
        if differing:
            raise UserError(
                f"checkpoint {self.folder} holds other arrays than this config makes: "
                f"{', '.join(differing[:5])}; use the config it was made with, or another --workdir"
            )


# Replicas share the writing of an array, but a small one is not worth a compiled slice for each.
ARRAY_TYPES = ocp.type_handlers.create_type_handler_registry(
    (np.ndarray, ocp.type_handlers.NumpyHandler()),
    (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**18)),
)


def array_handler(save_concurrent_gb: int | None = None) -> ocp.PyTreeCheckpointHandler:
    """Reads and writes arrays as they are: packing float32 saves 8 % and takes ten times as long.

    Args:
        save_concurrent_gb: what is written at once takes as much memory again.
    """
    return ocp.PyTreeCheckpointHandler(
        use_compression=False,
        save_concurrent_gb=save_concurrent_gb,
        type_handler_registry=ARRAY_TYPES,
    )


def save_arrays(parts: Mapping[str, Leaves]) -> ocp.args.PyTreeSave:
    """Arrays to be saved, in pieces that are read one after the other."""
    tree = {part: nest(leaves) for part, leaves in parts.items()}
    pieces = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=PIECE_BYTES), tree)
    return ocp.args.PyTreeSave(tree, save_args=pieces)


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)


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


def _on_all_hosts(what: str, read: Callable[[], T]) -> T:
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


def in_short(error: BaseException) -> str:
    """The cause of an error in one line; of a long one the beginning and the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return text if len(text) <= 180 else f"{text[:50]} … {text[-120:]}"


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
