"""A logger in a thread of its own: its time and its mistakes are not the run's."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, Full, Queue
from threading import Thread
from typing import Protocol

import numpy as np

from nepa_jax.base.errors import in_short
from nepa_jax.base.progress import warn
from nepa_jax.run.metrics import Scalars

MAX_WAITING = 1000  # calls that a slow tool may be behind
CLOSE_S = 60.0  # what a tool may take to finish, at the end of a run


class Logger(Protocol):
    """A tool that shows runs.

    One thread opens it and makes all calls, in the order of the steps. Each may raise anything: the
    tool gets nothing more then, and the run goes on.
    """

    def scalars(self, step: int, scalars: Scalars) -> None:
        """What ``metrics.jsonl`` gets of a step; NaN is possible."""

    def picture(self, step: int, pixels: np.ndarray) -> None:
        """What the objective draws of the state after a step: uint8 [H, W, 3]."""

    def close(self, summary: Scalars, ended_well: bool) -> None:
        """The last call.

        Args:
            summary: what was logged last.
            ended_well: at the last step, or at a stop that was asked for.
        """


def tell_failed(name: str, error: BaseException) -> None:
    warn(
        f"{name}: {in_short(error)}; the run goes on without it, and its next start tries again "
        "(metrics.jsonl has all)"
    )


class Background:
    """Hands on to a logger what the loop tells, without ever waiting for it."""

    def __init__(
        self, name: str, opened: Callable[[], Logger], let_go: Callable[[], None] = lambda: None
    ):
        """
        Args:
            name: of the tool, for warnings.
            opened: makes the logger, in the thread: a tool may ask the network first.
            let_go: ends what a tool that is left behind would keep this process alive with.
        """
        self._let_go = let_go
        self._name = name
        self._calls: Queue[Callable[[Logger], None]] = Queue(MAX_WAITING)
        self._stopped = self._behind = False
        self._last: Scalars = {}
        self._thread = Thread(target=self._work, args=(opened,), name=f"log_{name}", daemon=True)

    def write(self, step: int, scalars: Scalars) -> None:
        self._last = scalars
        self._ask(lambda logger: logger.scalars(step, scalars))

    def picture(self, step: int, pixels: np.ndarray) -> None:
        self._ask(lambda logger: logger.picture(step, pixels))

    def _ask(self, call: Callable[[Logger], None]) -> None:
        if self._stopped:
            return
        try:
            self._calls.put_nowait(call)
        except Full:
            if not self._behind:
                self._behind = True
                warn(
                    f"{self._name}: is more than {MAX_WAITING:,} steps behind; what it cannot take is "
                    "left out there (metrics.jsonl has it)"
                )

    def _work(self, opened: Callable[[], Logger]) -> None:
        try:
            logger = opened()
            while not self._stopped:
                self._calls.get()(logger)
        except (Exception, SystemExit) as error:  # whatever the tool raises
            self._stopped = True
            with suppress(Empty):  # who waits to put something need not
                while True:
                    self._calls.get_nowait()
            tell_failed(self._name, error)

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for what is under way, a while."""
        deadline = time.monotonic() + CLOSE_S
        with suppress(Full):
            if not self._stopped:
                self._calls.put(partial(self._close, ended_well=kind is None), timeout=CLOSE_S)
        self._thread.join(max(deadline - time.monotonic(), 0.0))
        if self._thread.is_alive():
            warn(
                f"{self._name}: did not finish in {CLOSE_S:g} s; what it has not sent is lost there"
            )
            self._let_go()

    def _close(self, logger: Logger, ended_well: bool) -> None:
        self._stopped = True
        logger.close(self._last, ended_well)
