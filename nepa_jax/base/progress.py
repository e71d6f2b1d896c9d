"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from nepa_jax.base.text import printable

T = TypeVar("T")
Advance = Callable[[int], None]

SECONDS_PER_LINE = 10.0


def warn(text: str) -> None:
    """One line for the user on stderr."""
    print(f"warning: {printable(text)}", file=sys.stderr, flush=True)


def meter(total: int | None, text: str, done: int = 0) -> AbstractContextManager[Advance]:
    """Gives a function that is told, from any thread, how many items have been finished more.

    `done` items of `total` are there from the start, and say nothing about the speed. A `total`
    of None is not known before the end.
    """
    return (_bar if sys.stderr.isatty() else _lines)(total, text, done)


@contextmanager
def _bar(total: int | None, text: str, done: int) -> Iterator[Advance]:
    from rich import progress as rich  # here: mistakes are told without loading it
    from rich.console import Console

    columns = (
        rich.TextColumn(text),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=total, completed=done)
        yield lambda number: bar.advance(task, number)


@contextmanager
def _lines(total: int | None, text: str, done: int) -> Iterator[Advance]:
    yield _Lines(total, text, done).advance


class _Lines:
    def __init__(self, total: int | None, text: str, done: int) -> None:
        self._total, self._text = total, text
        self._first = self._done = done
        self._start = self._printed = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, number: int) -> None:
        with self._lock:
            self._done += number
            now = time.monotonic()
            if now - self._printed >= SECONDS_PER_LINE:
                self._printed = now
                self._print(now - self._start)

    def _print(self, seconds: float) -> None:
        counts = f"{self._done:,} so far"
        if self._total is not None:
            left = seconds / max(1, self._done - self._first) * (self._total - self._done)
            counts = f"{self._done:,} of {self._total:,}, {left:.0f} s left"
        print(f"{self._text}: {counts}", file=sys.stderr, flush=True)


def progress(items: Iterable[T], total: int | None, text: str) -> Iterator[T]:
    """Yields `items`, of which there are `total` if that is known, and tells on stderr how far
    it is."""
    with meter(total, text) as advance:
        for item in items:
            yield item
            advance(1)
