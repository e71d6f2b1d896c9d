"""A run's metrics.jsonl, read: its objects as they stand, or columns of numbers for long runs."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from nepa_jax.base.progress import warn

Row = dict[str, Any]  # one line; ``step`` is a whole number

MOST_METRICS = 300  # columns; a log with more is not a run's
BLOCK = 1 << 20  # bytes of lines that are held as objects at a time


def read_rows(path: Path) -> list[Row]:
    """The objects in a file, in order; none if there is no such file.

    Lines that are none are told, but for a half-written last.
    """
    found = [row for block in _blocks(path) for row in block] if path.exists() else []
    if damaged := found[:-1].count(None):
        warn(damage(path, damaged, len(found)))
    return [row for row in found if row is not None]


def damage(path: Path, damaged: int, lines: int) -> str:
    """What to say of damaged lines."""
    return f"{path}: {damaged:,} of {lines:,} lines are damaged; they are left out"


def _blocks(path: Path) -> Iterator[list[Row | None]]:
    """The lines of a file, many at a time; None for one that holds no object with a step."""
    with path.open("rb") as file:
        while lines := file.readlines(BLOCK):
            yield [value if _is_row(value) else None for value in _parsed(lines)]


def _parsed(lines: Sequence[bytes]) -> list[Any]:
    try:
        return list(map(orjson.loads, lines))  # in a quarter of the time that json takes
    except ValueError:
        return list(map(_lenient, lines))


def _lenient(line: bytes) -> Any:
    """Also lines of others with NaN and Infinity, which are no JSON; None of what is damaged."""
    for loads in (orjson.loads, json.loads):
        with suppress(ValueError, RecursionError):
            return loads(line)
    return None


def _is_row(value: Any) -> bool:
    return type(value) is dict and type(value.get("step")) is int and 0 <= value["step"] < 2**63


class Log(NamedTuple):
    """The numbers of a run by metric. Of a step that was done again, the later line counts."""

    steps: np.ndarray  # int64 [n], increasing
    columns: dict[str, np.ndarray]  # float64 [n]; NaN where there is no finite number
    lost: dict[str, np.ndarray]  # of metrics that were not finite, the steps: int64 [any]
    went_back: list[tuple[int, int]]  # to a step, doing so many lines again
    lines: int = 0
    damaged: int = 0
    left_out: int = 0  # metrics beyond the first MOST_METRICS


def read_log(path: Path) -> Log:
    """The whole file as columns, also while a run goes on writing it.

    Half a million lines take seconds, and the memory of the columns alone.

    Raises:
        OSError: the file cannot be read.
    """
    steps: list[np.ndarray] = [np.zeros(0, np.int64)]
    pieces: dict[str, list[_Piece]] = {}
    lines = damaged = rows_before = 0
    for block in _blocks(path):
        rows = [row for row in block if row is not None]
        half_written = block[-1] is None  # at the end of the file nothing special
        lines, damaged = lines + len(block), damaged + len(block) - len(rows)
        steps.append(np.array([row["step"] for row in rows], np.int64))
        for key, piece in _pieces(rows, rows_before):
            pieces.setdefault(key, []).append(piece)
        rows_before += len(rows)
    damaged -= lines > 0 and half_written
    pieces.pop("step", None)
    return _settled(np.concatenate(steps), pieces)._replace(lines=lines, damaged=damaged)


class _Piece(NamedTuple):
    """Some rows of a column."""

    rows: np.ndarray  # int [m], of all in the file
    values: np.ndarray  # float64 [m]; NaN for null


def _pieces(rows: Sequence[Row], first: int) -> Iterator[tuple[str, _Piece]]:
    """The columns of some rows: together for all that hold the same metrics."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows):
        alike.setdefault(tuple(row), []).append(number)
    for keys, numbers in alike.items():
        places = np.array(numbers) + first
        lines = [tuple(rows[number].values()) for number in numbers]
        for key, column in zip(keys, _columns(lines), strict=True):
            yield key, _piece(places, column)


NUMBERS = {int, float, type(None)}


def _columns(lines: Sequence[tuple[Any, ...]]) -> Iterable[Any]:
    """Of each metric its values: an array at once where all are numbers, as they always are."""
    if set(map(type, chain.from_iterable(lines))) <= NUMBERS:
        with suppress(OverflowError):  # a whole number of hundreds of digits
            return np.array(lines, np.float64).T
    return zip(*lines, strict=True)


def _piece(places: np.ndarray, column: Any) -> _Piece:
    """Without what is no number: text, lists, true and false."""
    if isinstance(column, np.ndarray):
        return _Piece(places, column)
    there = [at for at, value in enumerate(column) if type(value) in NUMBERS]
    return _Piece(places[there], np.array([_float(column[at]) for at in there], np.float64))


def _float(value: float | None) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.nan


def _settled(steps: np.ndarray, pieces: Mapping[str, Sequence[_Piece]]) -> Log:
    """One row for each step that counts, of all rows of a file."""
    kept, went_back = _kept(steps)
    ascending = steps[kept]
    unique = ascending[np.diff(ascending, prepend=-1) > 0]
    place = np.searchsorted(unique, steps)  # of rows that are kept
    columns, lost = {}, {}
    for key in list(pieces)[:MOST_METRICS]:
        column, seen = np.full(len(unique), np.nan), np.zeros(len(unique), bool)
        rows, values = (np.concatenate(part) for part in zip(*pieces[key], strict=True))
        order = np.argsort(rows, kind="stable")  # a step's lines may stand in several pieces
        order = order[kept[rows[order]]]
        places = place[rows[order]]
        column[places], seen[places] = values[order], True  # of a step's lines the last stays
        bad = seen & ~np.isfinite(column)
        column[bad] = np.nan
        columns |= {key: column} if seen.any() else {}
        lost |= {key: unique[bad]} if bad.any() else {}
    return Log(unique, columns, lost, went_back, left_out=max(len(pieces) - MOST_METRICS, 0))


def _kept(steps: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Which rows no later one goes back behind: bool [n]; and to which steps the log went back."""
    if not len(steps):
        return np.zeros(0, bool), []
    least_after = np.minimum.accumulate(steps[::-1])[::-1]
    kept = steps <= np.append(least_after[1:], steps[-1])
    back = np.flatnonzero(np.diff(steps) < 0) + 1
    return kept, [(int(steps[at]), int(np.sum(steps[:at] >= steps[at]))) for at in back]
