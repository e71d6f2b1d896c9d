"""Processes that make batches, in memory that they share with this one."""

import math
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from multiprocessing.shared_memory import SharedMemory
from queue import SimpleQueue
from typing import Any

import numpy as np

from nepa_jax.data.batches import BatchMaker, Task
from nepa_jax.errors import UserError

SHARED_MEMORY = "/dev/shm"  # where it is on Linux

# They import neither jax nor grain, which would take most of their memory and of their start.


class Workers:
    """`num_workers` processes for batches of `rows` rows, of which `under_way` at a time.

    Raises UserError if there is too little shared memory.
    """

    def __init__(self, maker: BatchMaker, rows: int, num_workers: int, under_way: int) -> None:
        self._maker = maker
        self._shape = (rows, *maker.image_shape)
        _check_room(under_way * math.prod(self._shape))
        context = multiprocessing.get_context("spawn")  # the threads of jax do not survive a fork
        self._pool = ProcessPoolExecutor(num_workers, context, _set_up)
        self._blocks = [SharedMemory(create=True, size=math.prod(self._shape))]
        self._blocks += [
            SharedMemory(create=True, size=self._blocks[0].size) for _ in range(under_way - 1)
        ]
        self._free: SimpleQueue[SharedMemory] = SimpleQueue()
        for block in self._blocks:
            self._free.put(block)

    def __call__(self, task: Task) -> dict[str, Any]:
        """All that BatchMaker makes for `task`, and `image`, uint8 [rows, H, W, C].

        Raises BrokenProcessPool if a process has ended.
        """
        block = self._free.get()
        try:
            made = self._pool.submit(_make, self._maker, task, block.name).result()
            image = np.ndarray(self._shape, np.uint8, block.buf).copy()
        finally:
            self._free.put(block)
        return {"image": image, **made}

    def close(self) -> None:
        """Ends the processes, once they have finished what they are at."""
        self._pool.shutdown(cancel_futures=True)
        for block in self._blocks:
            block.unlink()


def _check_room(size: int) -> None:
    """A process that writes where no memory is left would be killed without a word."""
    if os.path.isdir(SHARED_MEMORY) and (free := shutil.disk_usage(SHARED_MEMORY).free) < size:
        raise UserError(
            f"{SHARED_MEMORY} has {free >> 20} MiB free, and the loader's processes want "
            f"{size >> 20}: lower data.num_workers, or enlarge it (docker run --shm-size=1g)"
        )


# In the processes.


def _set_up() -> None:
    """Signals to the group are for the parent, which may want more batches before it ends; but
    a process whose parent was killed would wait for ever."""
    os.setpgrp()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _make(maker: BatchMaker, task: Task, block: str) -> dict[str, Any]:
    shared = SharedMemory(block)
    try:
        shape = (len(task.indices), *maker.image_shape)
        return _first_equal(maker)(task, np.ndarray(shape, np.uint8, shared.buf))
    finally:
        shared.close()


@lru_cache(maxsize=1)
def _first_equal(maker: BatchMaker) -> BatchMaker:
    """The one that came with the first task: it has its threads and files open."""
    return maker
