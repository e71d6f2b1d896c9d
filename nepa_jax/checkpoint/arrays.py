"""An array of a checkpoint that stays on disk until its values are asked for."""

import math
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath

from nepa_jax.base.errors import in_short
from nepa_jax.checkpoint.checksums import checksum
from nepa_jax.checkpoint.meta import Damaged, Held


class SavedArray:
    """``np.asarray`` reads it in whole; a slice of the first axis reads these rows, on any thread.

    What is read is proven by the checksum: in whole at once, rows when all have been read.

    Attributes:
        shape: of the whole.
        dtype: NumPy's.
        rows_together: so many rows make up a piece on disk, which is read as one.
    """

    def __init__(self, name: str, store: ts.TensorStore, held: Held):
        """Raises Damaged if ``store`` is not of the dtype and shape that were saved."""
        self.shape: tuple[int, ...] = store.shape
        self.dtype: np.dtype = store.dtype.numpy_dtype
        self.rows_together: int = math.prod(store.chunk_layout.read_chunk.shape[:1])
        self._name, self._store, self._held = name, store, held
        self._lock = threading.Lock()
        self._begin()
        self._require(held.holds(self))

    def _begin(self) -> None:
        self._unread, self._total = math.prod(self.shape[:1]), np.zeros(2, np.uint32)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        """Raises Damaged if this is not what was saved."""
        values = self._read(...)
        self._prove(checksum(values))
        return np.asarray(values, dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Raises Damaged if these are the last rows and any was not what was saved."""
        start, stop, _ = rows.indices(self.shape[0])
        values = self._read(slice(start, stop))
        part = checksum(values, start * math.prod(self.shape[1:]))
        with self._lock:
            self._unread -= stop - start
            self._total += part
            if not self._unread:
                self._prove(self._total)
                self._begin()
        return values

    def _read(self, index: Any) -> np.ndarray:
        try:
            return self._store[index].read().result()
        except Exception as error:  # storage raises errors of any kind
            raise Damaged(f"{self._name} cannot be read: {in_short(error)}") from None

    def _prove(self, sums: np.ndarray) -> None:
        self._require(self._held.sums == tuple(sums.tolist()))

    def _require(self, same: bool) -> None:
        if not same:
            raise Damaged(f"{self._name} is not what was saved")


def open_arrays(folder: epath.Path, held: Mapping[str, Held]) -> dict[str, SavedArray]:
    """The arrays that a folder written by orbax holds.

    Raises:
        Damaged: one of them is not there, or another one is.
    """
    base = {"driver": "file", "path": f"{folder}/"}
    context = ts.Context()
    opening = {}
    for name in held:
        place = {"driver": "ocdbt", "base": base, "path": name.replace("/", ".")}
        opening[name] = ts.open({"driver": "zarr", "kvstore": place}, context=context, read=True)
    return {name: SavedArray(name, _opened(name, opening[name]), held[name]) for name in held}


def _opened(name: str, store: ts.Future) -> ts.TensorStore:
    try:
        return store.result()
    except Exception as error:  # storage raises errors of any kind
        raise Damaged(f"{name} cannot be read: {in_short(error)}") from None
