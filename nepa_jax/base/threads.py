"""Work shared among threads."""

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
