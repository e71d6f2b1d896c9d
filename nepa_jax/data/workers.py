"""Processes that make batches, in memory that they share with this one."""

import math
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing.shared_memory import SharedMemory
from queue import SimpleQueue

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.data.batches import BatchMaker, Made, Task
from nepa_jax.data.resize import one_thread_each

SHARED_MEMORY = "/dev/shm"  # where it is on Linux

# They import neither jax nor grain, which would take most of their memory and of their start.

# What a terminal that closes, Ctrl-C or a service manager sends to all processes at once is for
# the parent alone, which may want more batches before it ends. SIGTERM is also its own word, for
# them to end; only sigwaitinfo tells who sent it.
_KNOWS_SENDERS = hasattr(signal, "sigwaitinfo")
NOT_FOR_WORKERS = {signal.SIGINT, signal.SIGHUP} | ({signal.SIGTERM} if _KNOWS_SENDERS else set())


class Workers:
    """`num_workers` processes for batches of `rows` rows, of which `under_way` at a time.

    Raises UserError if there is too little shared memory.
    """

    def __init__(self, maker: BatchMaker, rows: int, num_workers: int, under_way: int) -> None:
        self._maker = maker
        self._shape = (rows, *maker.image_shape)
        _check_room(under_way * math.prod(self._shape))
        context = multiprocessing.get_context("spawn")  # the threads of jax do not survive a fork
        with _without_signals():  # this starts the process that cleans up after this one
            self._pool = ProcessPoolExecutor(num_workers, context, _set_up)
            self._blocks = [
                SharedMemory(create=True, size=math.prod(self._shape)) for _ in range(under_way)
            ]
        self._free: SimpleQueue[SharedMemory] = SimpleQueue()
        for block in self._blocks:
            self._free.put(block)

    def __call__(self, task: Task) -> Made:
        """What BatchMaker makes for `task`.

        Raises BrokenProcessPool if a process has ended, and as BatchMaker does.
        """
        block = self._free.get()
        try:
            with _without_signals():  # it may start a process
                future = self._pool.submit(_make, self._maker, task, block.name)
            made = future.result()
            made.batch["image"] = np.ndarray(self._shape, np.uint8, block.buf).copy()
        finally:
            self._free.put(block)
        return made

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


@contextmanager
def _without_signals() -> Iterator[None]:
    """Processes started within never get them: this thread's mask is theirs from the beginning."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_WORKERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# In the processes.


def _set_up() -> None:
    """They end with their parent, also when it was killed, and at its word."""
    one_thread_each.__enter__()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if _KNOWS_SENDERS:
        threading.Thread(target=_end_when_told, daemon=True).start()


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _end_when_told() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(1)


def _make(maker: BatchMaker, task: Task, block: str) -> Made:
    """Without the image: it is in the block."""
    shared = SharedMemory(block)
    try:
        shape = (len(task.indices), *maker.image_shape)
        made = _first_equal(maker)(task, np.ndarray(shape, np.uint8, shared.buf))
        del made.batch["image"]
        return made
    finally:
        shared.close()


@lru_cache(maxsize=1)
def _first_equal(maker: BatchMaker) -> BatchMaker:
    """The one that came with the first task: it has its threads and files open."""
    maker.records.open()
    return maker
