"""Where metrics go: metrics.jsonl always, to tools from loggers/; and rates computed from time."""

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import jax

from nepa_jax.base.errors import writing
from nepa_jax.base.text import to_json
from nepa_jax.plan.chips import mfu
from nepa_jax.run.log import read_rows

Scalars = Mapping[str, float]


class Writer(Protocol):
    """Takes the metrics of one step."""

    def write(self, step: int, scalars: Scalars) -> None: ...


METRICS = "metrics.jsonl"  # in a workdir
SYNC_S = 30.0  # a mounted bucket gets a file when it is synchronised or closed


class JsonlWriter:
    """One JSON object per logged step in ``WORKDIR/metrics.jsonl``; NaN is null there.

    A resumed run takes out the lines of steps that it is going to do again.
    """

    def __init__(self, path: Path, start_step: int):
        self._path = path
        kept = [row for row in read_rows(path) if row["step"] <= start_step]
        replacement = path.with_suffix(".tmp")
        with writing(path):
            replacement.write_text("".join(to_json(row) + "\n" for row in kept))
            replacement.replace(path)
            self._file = path.open("a", buffering=1)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sync_metrics")
        self._sync: Future[None] = self._pool.submit(lambda: None)
        self._synced = time.monotonic()

    def write(self, step: int, scalars: Scalars) -> None:
        with writing(self._path):
            self._file.write(to_json({"step": step, **scalars}) + "\n")
            if self._sync.done() and time.monotonic() - self._synced > SYNC_S:
                self._sync.result()  # raises what the last one failed of
                self._synced = time.monotonic()
                self._sync = self._pool.submit(os.fsync, self._file.fileno())

    def close(self) -> None:
        self._pool.shutdown()
        with suppress(OSError):  # of a line that failed when it was written
            self._file.close()


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The numbers of every logged step; none if there is no such file. What was NaN is not there."""
    return [
        {name: value for name, value in row.items() if type(value) in (int, float)}
        for row in read_rows(Path(path))
    ]


class Throughput:
    """Rates over the steps finished since the last reading, on the host's clock."""

    def __init__(self, batch_size: int, flops_per_image: float, waited_s: Callable[[], float]):
        self._batch_size = batch_size
        self._flops_per_image = flops_per_image
        self._waited_s = waited_s  # seconds spent waiting for data since the run began
        self.start()

    def start(self) -> None:
        """Leaves out what was before."""
        self._steps, self._began, self._waited = 0, time.perf_counter(), self._waited_s()

    def step_done(self) -> None:
        self._steps += 1

    def read(self) -> dict[str, float]:
        """Rates per step and second, then starts over. ``perf/mfu`` only for chips of known peak."""
        step_s = (time.perf_counter() - self._began) / self._steps
        rates = {
            "perf/images_per_s": self._batch_size / step_s,
            "time/step_s": step_s,
            "time/data_wait_s": (self._waited_s() - self._waited) / self._steps,
        }
        flops_per_s = self._flops_per_image * self._batch_size / step_s
        utilisation = mfu(flops_per_s, jax.devices()[0].device_kind, jax.device_count())
        self.start()
        return rates if utilisation is None else rates | {"perf/mfu": utilisation}
