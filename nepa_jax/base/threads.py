"""Work shared among threads."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(function: Callable[[T], R], items: Iterable[T], num_threads: int) -> Iterator[R]:
    """`map` over threads, in order, that keeps only a few results waiting.

    Executor.map would start on all items at once and hold every result in memory. If a call
    raises, or the caller stops, what has not begun is not begun.
    """
    rest = iter(items)
    with ThreadPoolExecutor(num_threads) as pool:
        ahead = (pool.submit(function, item) for item in islice(rest, 2 * num_threads))
        pending: list[Future[R]] = list(ahead)
        try:
            while pending:
                yield pending.pop(0).result()
                pending.extend(pool.submit(function, item) for item in islice(rest, 1))
        finally:
            pool.shutdown(cancel_futures=True)


class SharedContext:
    """A context that several threads are in at a time, for what belongs to the whole process.

    `begin` sets it when the first one enters; what it returns puts it back when the last one leaves.
    """

    def __init__(self, begin: Callable[[], Callable[[], None]]) -> None:
        self._begin = begin
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._end = self._begin()
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._end()
