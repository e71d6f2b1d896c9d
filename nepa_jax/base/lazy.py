"""The one array whose values are read, or made, when they are asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class LazyArray:
    """``np.asarray`` has it whole, a slice of the first axis these rows; each on any thread.

    Attributes:
        shape: of the whole.
        dtype: NumPy's; or what a file calls it, where NumPy may have none.
        read: makes the whole, and raises whatever its source does.
        read_rows: makes some rows alone, where the source can.
        rows_together: so many rows the source reads as one; 0 where only the whole can be had.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable[[], np.ndarray]
    read_rows: Callable[[slice], np.ndarray] | None = None
    rows_together: int = 0

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.read_rows(rows) if self.read_rows else self.read()[rows]
