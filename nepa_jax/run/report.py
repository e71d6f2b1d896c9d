"""What a run says of itself while it goes on: metrics to files, signs of life to the terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from nepa_jax.objectives.base import Alarm
from nepa_jax.run.metrics import Scalars, Writer

ALARMS = (  # of every run; an objective has its own beside them
    Alarm(
        lambda scalars: scalars["time/data_wait_s"] > 0.05 * scalars["time/step_s"],
        "the step waits for data more than 5 % of the time; try data.resize=fast, data.num_workers=2 "
        "or more, or records prepared with --reencode (docs/data.md)",
    ),
)


class Reports(Protocol):
    """Takes the metrics of a logged step, and signs of life between them."""

    def __call__(self, step: int, scalars: Scalars) -> None: ...

    def pulse(self, step: int, loss: float) -> None: ...


class NoReport:
    """Of a host that is not the first."""

    def __call__(self, step: int, scalars: Scalars) -> None: ...

    def pulse(self, step: int, loss: float) -> None: ...


SECONDS_PER_LINE = 10.0


class Report:
    """Writes metrics to files, and shows them: a bar on a terminal, plain lines elsewhere.

    Between logged steps, which may be minutes apart, there is a line every ten seconds, and one after
    the second step, when the time to go is first known.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        start_step: int,
        total_steps: int,
        facts: Callable[[int], Scalars] = lambda step: {},
        alarms: Sequence[Alarm] = (),
    ):
        self._writers = writers
        self._facts = facts  # logged beside a step's own metrics
        self._total = total_steps
        self._timed_from: tuple[int, float] | None = None  # the first step that ended, and when
        self._told_eta = False
        self._printed = time.monotonic()
        self._silent = [*ALARMS, *alarms]
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
        scalars = {**scalars, **self._facts(step)}
        for writer in self._writers:
            writer.write(step, scalars)
        if step > 1:  # the first step always waits for the first batch
            self._ring(step, scalars)
        text = f"loss {scalars['train/loss']:.4f}  {scalars['perf/images_per_s']:,.0f} images/s"
        self._show(step, text, often=True)

    def pulse(self, step: int, loss: float) -> None:
        """Shows a step that is not logged."""
        self._show(step, f"loss {loss:.4f}", often=False)

    def _show(self, step: int, text: str, often: bool) -> None:
        now, eta = time.monotonic(), self._eta(step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif often or (eta and not self._told_eta) or now - self._printed >= SECONDS_PER_LINE:
            self._printed, self._told_eta = now, bool(eta)
            print(f"step {step}/{self._total}  {text}{eta}", flush=True)

    def _eta(self, step: int) -> str:
        """Of the time per step so far; "" before the second one."""
        now = time.monotonic()
        if self._timed_from is None:
            self._timed_from = step, now
        first, began = self._timed_from
        if step == first:
            return ""
        return f"  ETA {_duration((self._total - step) * (now - began) / (step - first))}"

    def _ring(self, step: int, scalars: Scalars) -> None:
        for alarm in [alarm for alarm in self._silent if alarm.rings(scalars)]:
            self._silent.remove(alarm)
            print(f"warning: at step {step} {alarm.text}", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
