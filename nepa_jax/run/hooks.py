"""What happens every n steps beside the update: logging, saving, stopping a run gone wrong."""

import faulthandler
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import jax
import numpy as np

from nepa_jax.base.errors import RunDiverged
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.saving import Checkpoints
from nepa_jax.hosts.agree import from_first_host
from nepa_jax.objectives.base import Metrics
from nepa_jax.run.goodput import Goodput
from nepa_jax.run.metrics import Scalars, Throughput
from nepa_jax.run.report import Reports
from nepa_jax.step import TrainState


class Hook(Protocol):
    """Called after every step; ``step`` is the number of steps done."""

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None: ...

    def close(self, state: TrainState) -> None:
        """Called once, when the loop ends well: finish what is under way."""


class Evaluation(Protocol):
    """Of the encoder as it is after some steps; a function of the state."""

    def due(self, step: int) -> bool: ...

    def __call__(self, state: TrainState) -> Scalars: ...


class MetricsHook:
    """Reads the metrics two steps late, so that the device never waits for the host.

    That also keeps the host from running further ahead than two batches. A step whose state is evaluated
    is read at once and logged with the result, before anything is saved of it.
    """

    def __init__(
        self,
        every: int,
        throughput: Throughput,
        guard: Callable[[int, Scalars], None],
        report: Reports,
        evaluation: Evaluation | None = None,
    ):
        self._evaluation = evaluation
        self._every = every
        self._throughput = throughput
        self._guard = guard
        self._report = report
        self._pending: deque[tuple[int, Metrics]] = deque()

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._pending.append((step, metrics))
        due = self._evaluation is not None and self._evaluation.due(step)
        while len(self._pending) > (1 if due else 2):
            self._read(*self._pending.popleft())
        if due:
            self._read(*self._pending.popleft(), partial(self._evaluation, state))

    def close(self, state: TrainState) -> None:
        while self._pending:
            self._read(*self._pending.popleft())

    def _read(
        self, step: int, metrics: Metrics, evaluate: Callable[[], Scalars] | None = None
    ) -> None:
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._guard(step, scalars)
        self._throughput.step_done()
        if step % self._every == 0 or step == 1 or evaluate:
            row = {_logged_as(name): value for name, value in scalars.items()}
            row |= self._throughput.read()
            if evaluate:
                row |= evaluate()
                self._throughput.start()  # it is no part of a step
            self._report(step, row)
        else:
            self._report.pulse(step, scalars["loss"])


def _logged_as(name: str) -> str:
    return name if name.startswith("eval/") else f"train/{name}"


def skip_guard(
    max_in_a_row: int, shown: Callable[[int, int], np.ndarray]
) -> Callable[[int, Scalars], None]:
    """Stops a run after too many skipped steps in a row, naming examples of the last one.

    Args:
        max_in_a_row: more of them stop the run.
        shown: the records in the first rows of a step, given the step and the number of rows.
    """

    def guard(step: int, scalars: Scalars) -> None:
        if scalars["skipped_in_a_row"] > max_in_a_row:
            examples = shown(step - 1, NUM_NAMED).tolist()
            raise RunDiverged(
                f"{max_in_a_row + 1} steps in a row up to step {step} had {NOT_KEPT}; records in "
                f"the first rows of that step: {examples}. The last checkpoint is sound: resume "
                "with a lower optim.lr or a smaller optim.clip_norm"
            )

    return guard


NUM_NAMED = 16  # examples
NOT_KEPT = "a loss, gradient or update that is not finite, or a spike"


def check_end(state: TrainState) -> None:
    """Raises RunDiverged if the last steps of a run were thrown away: it is over, and not done.

    One alone, among kept ones, is chance.
    """
    step, lost = int(state.step), int(state.skipped_in_a_row)
    if lost > 1 or lost == step > 0:
        raise RunDiverged(
            f"the last {lost} of {step} steps had {NOT_KEPT}. The checkpoint holds the sound weights "
            f"of step {step - lost}: go on from it with a lower optim.lr or a smaller "
            "optim.clip_norm, and a larger schedule.total_steps; or begin again in another workdir"
        )


class CheckpointHook:
    """Saves every n steps, once by time before the first of these, at the end, and what is wanted.

    A state is always finite: see step.make_update.
    """

    def __init__(
        self,
        every: int,
        first_minutes: float,
        checkpoints: Checkpoints,
        provenance: Provenance,
        goodput: Goodput,
        wanted: Callable[[int], bool] = lambda step: False,
    ):
        self._wanted = wanted  # of a step: by what was found in its evaluation
        self._every = every
        self._first_s = 60 * first_minutes
        self._checkpoints = checkpoints
        self._provenance = provenance
        self._goodput = goodput
        self._began = time.monotonic()
        self._ask_at: float = 0  # a step; infinite once one is saved
        self._steps = 0  # done since the start

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._checkpoints.check()
        self._steps += 1
        if step % self._every == 0 or self._wanted(step) or self._first_is_due():
            self._save(step, state)

    def _first_is_due(self) -> bool:
        """Asked after ever more steps, since all hosts must ask the first one's clock."""
        if self._steps < self._ask_at or not self._first_s:
            return False
        self._ask_at = self._steps + max(1, self._steps // 4)
        past = from_first_host(lambda: str(time.monotonic() - self._began >= self._first_s))
        return past == "True"

    def _save(self, step: int, state: TrainState) -> None:
        self._ask_at = math.inf
        with self._goodput.spent("checkpoint"):
            self._checkpoints.save(step, state, self._provenance)

    def close(self, state: TrainState) -> None:
        self._save(int(state.step), state)
        with self._goodput.spent("checkpoint"):
            self._checkpoints.wait()


class WatchdogHook:
    """Prints the stacks of all threads, again and again, while no step ends for a set time.

    The first step may take as long as it likes. Two steps are under way at a time, so that a hang
    of the devices shows two steps later.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if self._seconds:  # each call starts the clock anew
            faulthandler.dump_traceback_later(self._seconds, repeat=True, file=sys.__stderr__)

    def close(self, state: TrainState) -> None:
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> "WatchdogHook":
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()


PROFILED_ON_SIGNAL = 5  # steps


class ProfileRequest:
    """SIGUSR1, at any time while the context is open, asks for a profile."""

    def __init__(self) -> None:
        self._asked = False
        self._former: Any = None

    def take(self) -> bool:
        """Whether one was asked for since the last call."""
        asked, self._asked = self._asked, False
        return asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def __enter__(self) -> "ProfileRequest":
        main = threading.current_thread() is threading.main_thread()
        if (
            main and signal.getsignal(signal.SIGUSR1) is not None
        ):  # None: Python could not put it back
            self._former = signal.signal(signal.SIGUSR1, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._former is not None:
            signal.signal(signal.SIGUSR1, self._former)


class ProfileHook:
    """Writes a trace for XProf or TensorBoard over a range of steps, or on SIGUSR1 over the next five.

    Every host writes its own devices' trace.
    """

    def __init__(self, folder: Path, steps: tuple[int, int], request: ProfileRequest):
        self._folder = folder
        self._steps = steps  # the first one, and the one after the last; (0, 0): none
        self._request = request
        self._running = False

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if not self._running and self._request.take():
            self._steps = (step + 1, step + 1 + PROFILED_ON_SIGNAL)
        first, end = self._steps
        if not self._running and first <= step + 1 < end:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._running and step + 1 >= end:
            self._stop(metrics)

    def _stop(self, metrics: Metrics) -> None:
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
        self._running = False
        print(
            f"profile: {self._folder}; look at it with `xprof --logdir={self._folder}`", flush=True
        )

    def close(self, state: TrainState) -> None:
        if self._running:
            self._stop({"step": state.step})

    def __enter__(self) -> "ProfileHook":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:  # the loop did not end well
            jax.profiler.stop_trace()
