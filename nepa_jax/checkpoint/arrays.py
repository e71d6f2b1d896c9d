"""How arrays lie on disk: each in pieces (zarr), all in files of some size (OCDBT)."""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from nepa_jax.base.errors import in_short
from nepa_jax.base.lazy import LazyArray
from nepa_jax.checkpoint.checksums import checksum
from nepa_jax.checkpoint.meta import Damaged, LeafMeta, Leaves

PIECE_BYTES = 2**25  # of an array, and of a file: it is written out while others are copied
MIN_PIECE_BYTES = 2**20  # smaller rows lie together
BATCH_BYTES = 2**28  # what is read at once: it may be twice in memory, as it comes and as arrays


# Writing the state of a run, which orbax does: all hosts together, in the background

# Replicas share the writing of an array, but a small one is not worth a compiled slice for each.
ARRAY_TYPES = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**18)),
)


def array_handler() -> ocp.PyTreeCheckpointHandler:
    """Writes arrays as they are: packing float32 saves 8 % and takes ten times as long."""
    return ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=ARRAY_TYPES)


def save_arrays(parts: Mapping[str, Leaves]) -> ocp.args.PyTreeSave:
    """Arrays to be saved, in pieces that are read one after the other."""
    tree = {part: _nested(leaves) for part, leaves in parts.items()}
    pieces = jax.tree.map(_in_pieces, tree)
    return ocp.args.PyTreeSave(tree, pieces, ocdbt_target_data_file_size=PIECE_BYTES)


def _in_pieces(leaf: jax.Array) -> ocp.SaveArgs:
    """Of whole rows, if these are large: a stack of layers is exported layer by layer."""
    ours = leaf.sharding.shard_shape(leaf.shape)
    large = _row_bytes(ours, leaf.dtype) >= MIN_PIECE_BYTES
    return ocp.SaveArgs(chunk_byte_size=PIECE_BYTES, shard_axes=(0,) if large else ())


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape[1:]) * dtype.itemsize


def _nested(leaves: Leaves) -> dict[str, Any]:
    """``{"a/b": x}`` as ``{"a": {"b": x}}``."""
    nested: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return nested


# Writing leaves that are made one by one


def write_part(folder: epath.Path, part: str, leaves: Leaves) -> dict[str, LeafMeta]:
    """Writes leaves in turn; each is made, by ``np.asarray``, while the one before is written."""
    context, written = ts.Context(), {}
    writing = None
    for name, leaf in leaves.items():
        values = np.asarray(leaf)
        written[name] = LeafMeta.of(values, checksum(values))
        if writing:
            writing.result()
        place = _place(folder, f"{part}/{name}", target_data_file_size=PIECE_BYTES)
        layout = {"chunks": _piece(values), "compressor": None}
        store = ts.open(
            {"driver": "zarr", "kvstore": place, "metadata": layout},
            dtype=values.dtype, shape=values.shape, create=True, context=context,
        )  # fmt: skip
        writing = store.result().write(values, can_reference_source_data_indefinitely=True)
    if writing:
        writing.result()
    return written


def _piece(array: np.ndarray) -> list[int]:
    """The shape of the pieces of an array: a large row each, or many small ones."""
    row = _row_bytes(array.shape, array.dtype)
    rows = 1 if row >= MIN_PIECE_BYTES else PIECE_BYTES // max(row, 1)
    return [min(rows, *array.shape[:1]), *array.shape[1:]] if array.ndim else []


# Reading


def open_part(
    folder: epath.Path, part: str, saved: Mapping[str, LeafMeta]
) -> dict[str, "StoredLeaf"]:
    """The leaves of a part, of the arrays in a folder.

    Raises:
        Damaged: one of them is not there, or another one is.
    """
    context, opening = ts.Context(), {}
    for name in saved:
        place = _place(folder, f"{part}/{name}")
        opening[name] = ts.open({"driver": "zarr", "kvstore": place}, context=context, read=True)
    return {name: StoredLeaf(f"{part}/{name}", opening[name], saved[name]) for name in saved}


def _place(folder: epath.Path, name: str, **how: Any) -> dict[str, Any]:
    base = {"driver": "file", "path": f"{folder}/"}
    return {"driver": "ocdbt", "base": base, "path": name.replace("/", "."), **how}


def _result(name: str, future: ts.Future) -> Any:
    try:
        return future.result()
    except Exception as error:  # storage raises errors of any kind
        raise Damaged(f"{name} cannot be read: {in_short(error)}") from None


class StoredLeaf:
    """A leaf on disk."""

    def __init__(self, name: str, opening: ts.Future, saved: LeafMeta):
        """Raises Damaged if it cannot be opened, or is not of the dtype and shape that were saved."""
        self._name, self._store, self._saved = name, _result(name, opening), saved
        self._require(saved == LeafMeta(self._store.dtype.name, self._store.shape, saved.sums))
        self._lock = threading.Lock()
        self._begin()

    def lazy(self) -> LazyArray:
        """Proven by the checksum: in whole at once, rows when all have been read.

        Reading it raises Damaged if this is not what was saved.
        """
        pieces = self._store.chunk_layout.read_chunk.shape or ()
        return LazyArray(
            self._store.shape,
            self._store.dtype.numpy_dtype,
            self._whole,
            self._rows,
            rows_together=math.prod(pieces[:1]),
        )

    def begin(self, sharding: jax.sharding.Sharding) -> Callable[[Any], np.ndarray]:
        """Begins to read what this host's devices hold, each slice once; not proven.

        Returns:
            The values of a slice, once they are there. It raises Damaged if they cannot be read.
        """
        indices = sharding.addressable_devices_indices_map(self._store.shape).values()
        wanted = {str(index): index for index in indices}
        reads = {key: self._store[index].read() for key, index in wanted.items()}
        return lambda index: _result(self._name, reads[str(index)])

    def _begin(self) -> None:
        self._unread, self._total = math.prod(self._store.shape[:1]), np.zeros(2, np.uint32)

    def _whole(self) -> np.ndarray:
        values = _result(self._name, self._store.read())
        self._prove(checksum(values))
        return values

    def _rows(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self._store.shape[0])
        values = _result(self._name, self._store[start:stop].read())
        part = checksum(values, start * math.prod(self._store.shape[1:]))
        with self._lock:
            self._unread -= stop - start
            self._total += part
            if not self._unread:
                self._prove(self._total)
                self._begin()
        return values

    def _prove(self, sums: np.ndarray) -> None:
        self._require(self._saved.sums == tuple(sums.tolist()))

    def _require(self, same: bool) -> None:
        if not same:
            raise Damaged(f"{self._name} is not what was saved")


def onto_devices(stored: Mapping[str, StoredLeaf], wanted: Leaves) -> dict[str, jax.Array]:
    """Leaves in the wanted shardings; each host reads what its devices hold. None is proven.

    Raises:
        Damaged: one cannot be read.
    """
    found = {}
    for batch in batches(wanted, BATCH_BYTES):
        reads = {name: stored[name].begin(leaf.sharding) for name, leaf in batch.items()}
        for name, leaf in batch.items():
            values = reads.pop(name)
            found[name] = jax.make_array_from_callback(leaf.shape, leaf.sharding, values)
    return found


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
