"""What happens every n steps beside the update: logging, saving, stopping a run gone wrong."""

import faulthandler
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Protocol

import jax
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from nepa_jax.checkpoint import Checkpoints
from nepa_jax.errors import RunDiverged
from nepa_jax.goodput import Goodput
from nepa_jax.meta import Provenance
from nepa_jax.metrics import Scalars, Throughput, Writer
from nepa_jax.objectives.base import Metrics
from nepa_jax.step import TrainState


class Hook(Protocol):
    """Called after every step; ``step`` is the number of steps done."""

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None: ...

    def close(self, state: TrainState) -> None:
        """Called once, when the loop ends well: finish what is under way."""


class MetricsHook:
    """Reads the metrics two steps late, so that the device never waits for the host.

    That also keeps the host from running further ahead than two batches.
    """

    def __init__(
        self,
        every: int,
        throughput: Throughput,
        guard: Callable[[int, Scalars], None],
        report: Callable[[int, Scalars], None],
    ):
        self._every = every
        self._throughput = throughput
        self._guard = guard
        self._report = report
        self._pending: deque[tuple[int, Metrics]] = deque()

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._pending.append((step, metrics))
        while len(self._pending) > 2:
            self._read(*self._pending.popleft())

    def close(self, state: TrainState) -> None:
        while self._pending:
            self._read(*self._pending.popleft())

    def _read(self, step: int, metrics: Metrics) -> None:
        scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self._guard(step, scalars)
        self._throughput.step_done()
        if step % self._every == 0 or step == 1:
            train = {f"train/{name}": value for name, value in scalars.items()}
            self._report(step, train | self._throughput.read())


def skip_guard(
    max_in_a_row: int, indices: Callable[[int], np.ndarray]
) -> Callable[[int, Scalars], None]:
    """Stops a run after too many skipped steps in a row, naming the examples of the last one."""

    def guard(step: int, scalars: Scalars) -> None:
        if scalars["skipped_in_a_row"] > max_in_a_row:
            examples = indices(step - 1).tolist()
            shown = f"{examples[:16]}" + (
                f" and {len(examples) - 16} more" if len(examples) > 16 else ""
            )
            raise RunDiverged(
                f"{max_in_a_row + 1} steps in a row up to step {step} had {NOT_KEPT}; records of "
                f"that step: {shown}. The last checkpoint is sound: resume with a lower optim.lr "
                "or a smaller optim.clip_norm"
            )

    return guard


NOT_KEPT = "a loss, gradient or update that is not finite, or a spike"


def check_end(state: TrainState) -> None:
    """Raises RunDiverged if the last step of a run was thrown away: it is over, and not done."""
    step, lost = int(state.step), int(state.skipped_in_a_row)
    if lost:
        raise RunDiverged(
            f"the last {lost} of {step} steps had {NOT_KEPT}. The checkpoint holds the sound weights "
            f"of step {step - lost}: go on from it with a lower optim.lr or a smaller "
            "optim.clip_norm, and a larger schedule.total_steps; or begin again in another workdir"
        )


class CheckpointHook:
    """Saves every n steps and at the end. A state is always finite: see step.make_update."""

    def __init__(
        self, every: int, checkpoints: Checkpoints, provenance: Provenance, goodput: Goodput
    ):
        self._every = every
        self._checkpoints = checkpoints
        self._provenance = provenance
        self._goodput = goodput

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._checkpoints.check()
        if step % self._every == 0:
            self._save(step, state)

    def _save(self, step: int, state: TrainState) -> None:
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


class ProfileHook:
    """Writes a trace for XProf or TensorBoard over a range of steps, or on SIGUSR1 over the next five.

    Every host writes its own devices' trace.
    """

    def __init__(self, folder: Path, steps: tuple[int, int]):
        self._folder = folder
        self._steps = steps  # the first one, and the one after the last; (0, 0): none
        self._asked = False
        self._running = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if self._asked and not self._running:
            self._asked, self._steps = False, (step + 1, step + 1 + PROFILED_ON_SIGNAL)
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


class Alarm(NamedTuple):
    """Something a user should hear of once: when, and what to do."""

    rings: Callable[[Scalars], bool]
    text: str


ALARMS = (
    Alarm(
        lambda scalars: scalars.get("train/target_std", 1.0) < 0.1,
        "the target embeddings collapse (train/target_std below 0.1 of isotropic): features will be "
        "useless; check the stop-gradient and lower optim.lr",
    ),
    Alarm(
        lambda scalars: scalars["time/data_wait_s"] > 0.05 * scalars["time/step_s"],
        "the step waits for data more than 5 % of the time; try data.decode=fast, data.num_workers=2 "
        "or more, or records prepared with --reencode (docs/data.md)",
    ),
)


class Report:
    """Writes metrics to files, and shows them: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, writers: Sequence[Writer], start_step: int, total_steps: int):
        self._writers = writers
        self._total = total_steps
        self._silent = list(ALARMS)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if sys.stdout.isatty():
            columns: Iterable = (
                TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"),
                TextColumn("ETA"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console())
            self._task = self._bar.add_task("", total=total_steps, completed=start_step)
            self._bar.start()

    def __call__(self, step: int, scalars: Scalars) -> None:
        for writer in self._writers:
            writer.write(step, scalars)
        if step > 1:  # the first step always waits for the first batch
            self._ring(step, scalars)
        text = f"loss {scalars['train/loss']:.4f}  {scalars['perf/images_per_s']:,.0f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
            return
        eta = (self._total - step) * scalars["time/step_s"]
        print(f"step {step}/{self._total}  {text}  ETA {_duration(eta)}", flush=True)

    def _ring(self, step: int, scalars: Scalars) -> None:
        for alarm in [alarm for alarm in self._silent if alarm.rings(scalars)]:
            self._silent.remove(alarm)
            print(f"warning: at step {step} {alarm.text}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        for writer in self._writers:
            writer.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
