"""Long work that can be watched and given up."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")

SECONDS_PER_LINE = 10.0
LOOK_S = 0.1


class GivenUp(Exception):
    """The work was abandoned; its thread may still be at it."""


def attended(work: Callable[[], T], text: str, stop: Callable[[], bool] = lambda: False) -> T:
    """What ``work`` returns or raises. Meanwhile tells every ten seconds that it goes on.

    It runs in a thread: compilers keep the interpreter from hearing signals for minutes.

    Args:
        work: to be done.
        text: what it is, such as ``"compiling the step"``.
        stop: whether to give up, asked ten times a second.

    Raises:
        GivenUp: ``stop`` said so.
    """
    task = _Task(work)
    with told(text):
        while not task.wait(LOOK_S):
            if stop():
                atexit.register(task.leave)
                raise GivenUp(text)
    return task.result()


@contextmanager
def told(text: str) -> Iterator[None]:
    """While the context is open, a line every ten seconds says that ``text`` goes on."""
    began, over = time.monotonic(), threading.Event()

    def tell() -> None:
        while not over.wait(SECONDS_PER_LINE):
            seconds = time.monotonic() - began
            print(f"{text}: {seconds:.0f} s so far", file=sys.stderr, flush=True)

    teller = threading.Thread(target=tell, name="told", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


class _Task(Generic[T]):
    def __init__(self, work: Callable[[], T]):
        self._work = work
        self._result: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="attended", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # raised again where it is waited for
            self._error = error
        finally:
            atexit.unregister(self.leave)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result

    def leave(self) -> None:
        """At the process's end: a compiler still at work would crash in a half-closed interpreter."""
        if self._thread.is_alive():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1 if hasattr(sys, "last_value") else 0)  # the error that ended the process
