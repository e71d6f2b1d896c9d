"""A lazy array is read when it is asked, and no more of it than its source must."""

import numpy as np

from nepa_jax.base.lazy import LazyArray

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


def lazy(asked: list, *, by_rows: bool) -> LazyArray:
    def read() -> np.ndarray:
        asked.append("all")
        return VALUES

    def read_rows(rows: slice) -> np.ndarray:
        asked.append(rows)
        return VALUES[rows]

    return LazyArray(VALUES.shape, VALUES.dtype, read, read_rows if by_rows else None)


def test_it_is_read_whenever_it_is_asked_and_not_before():
    asked = []
    array = lazy(asked, by_rows=True)
    assert (array.shape, array.dtype, asked) == ((4, 3), np.float32, [])
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(array), VALUES)
    assert np.asarray(array, np.float64).dtype == np.float64
    assert asked == ["all"] * 3


def test_rows_are_read_alone_where_the_source_can():
    for by_rows in (True, False):
        asked = []
        np.testing.assert_array_equal(lazy(asked, by_rows=by_rows)[1:3], VALUES[1:3])
        assert asked == ([slice(1, 3)] if by_rows else ["all"])
