"""Progress of long work: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")
R = TypeVar("R")

SECONDS_PER_LINE = 10.0


def progress(items: Iterable[T], total: int, text: str) -> Iterator[T]:
    """Yields `items`, of which there are `total`, and tells on stderr how far it is."""
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, description=text, total=total, console=console)
    else:
        yield from _with_lines(items, total, text)


def _with_lines(items: Iterable[T], total: int, text: str) -> Iterator[T]:
    next_line = time.monotonic() + SECONDS_PER_LINE
    for done, item in enumerate(items):
        if time.monotonic() >= next_line:
            print(f"{text}: {done:,} of {total:,}", file=sys.stderr, flush=True)
            next_line = time.monotonic() + SECONDS_PER_LINE
        yield item


def ordered_map(function: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """`map` over threads, in order, that keeps only a few results waiting.

    Executor.map would start on all items at once and hold every result in memory.
    """
    pending: list[Future[R]] = []
    rest = iter(items)
    with ThreadPoolExecutor(num_threads) as pool:
        pending = [pool.submit(function, item) for item in islice(rest, 4 * num_threads)]
        while pending:
            yield pending.pop(0).result()
            pending.extend(pool.submit(function, item) for item in islice(rest, 1))
