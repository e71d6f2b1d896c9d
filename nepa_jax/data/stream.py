"""Blocks of rows, made ahead of time: by threads of this process, or by worker processes."""

from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from queue import SimpleQueue

import grain
import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.data.batches import BatchMaker, Made, Task
from nepa_jax.data.order import Order
from nepa_jax.data.resize import one_thread_each
from nepa_jax.data.workers import Workers

END = 1 << 60  # the stream has no end; grain wants a length

Make = Callable[[Task], Made]


@dataclass(frozen=True)
class Blocks:
    """The endless order of the examples, cut into blocks of `rows` rows."""

    order: Order
    rows: int

    def task(self, block: int) -> Task:
        positions = range(block * self.rows, (block + 1) * self.rows)
        return Task(positions.start, self.order.indices(positions))


class Stream:
    """The blocks that `chosen` picks, in order.

    Raises UserError if there is too little memory for worker processes, or when one of them ends
    or there is none left; and as BatchMaker does.
    """

    def __init__(self, maker: BatchMaker, blocks: Blocks, chosen: slice) -> None:
        self._config = maker.config
        self._open = ExitStack()
        # One more than there are processes, so that none waits for its next task; and so that
        # no thread idles while the slowest image of a batch is finished.
        under_way = max(1, self._config.num_workers) + 1
        self._make: Make
        if self._config.num_workers:
            self._make = Workers(maker, blocks.rows, self._config.num_workers, under_way)
            self._open.callback(self._make.close)
        else:
            self._make = _in_this_process(maker)
            self._open.enter_context(one_thread_each)
        self._blocks = blocks
        self._ready: SimpleQueue[int] = SimpleQueue()
        ahead = grain.ReadOptions(
            num_threads=under_way, prefetch_buffer_size=max(under_way, self._config.read_ahead)
        )
        stream = grain.MapDataset.range(END)[chosen].map(self._make_block)
        self._iterator = iter(stream.to_iter_dataset(ahead))

    def __next__(self) -> Made:
        try:
            made = next(self._iterator)
        except BrokenProcessPool as error:
            raise self._too_much(
                "a worker process of the loader ended: if the system killed it for its memory"
            ) from error
        except MemoryError as error:
            raise self._too_much("there is no memory left to decode an image") from error
        self._ready.get()
        return made

    def _too_much(self, what: str) -> UserError:
        config = self._config
        return UserError(
            f"{what}, lower data.num_workers={config.num_workers} or "
            f"data.num_threads={config.threads} or data.read_ahead={config.read_ahead}"
        )

    @property
    def num_ready(self) -> int:
        """Blocks that are made and not taken."""
        return self._ready.qsize()

    def close(self) -> None:
        """Stops what is read ahead."""
        self._iterator.close()
        self._open.close()

    def _make_block(self, block: int) -> Made:
        made = self._make(self._blocks.task(block))
        self._ready.put(block)
        return made


def _in_this_process(maker: BatchMaker) -> Make:
    return lambda task: maker(task, np.empty((len(task.indices), *maker.image_shape), np.uint8))
