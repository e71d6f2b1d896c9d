"""Where metrics go: metrics.jsonl always, TensorBoard on request; and rates computed from time."""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import jax

from nepa_jax.errors import UserError
from nepa_jax.flops import mfu

Scalars = Mapping[str, float]


class Writer(Protocol):
    """Takes the metrics of one step."""

    def write(self, step: int, scalars: Scalars) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """One JSON object per logged step in ``WORKDIR/metrics.jsonl``.

    A resumed run takes out the lines of steps that it is going to do again.
    """

    def __init__(self, path: Path, start_step: int):
        kept = [
            line
            for line in _lines(path)
            if _step_of(line) is not None and _step_of(line) <= start_step
        ]
        replacement = path.with_suffix(".tmp")
        replacement.write_text("".join(line + "\n" for line in kept))
        replacement.replace(path)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, scalars: Scalars) -> None:
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")

    def close(self) -> None:
        with suppress(OSError):  # of a line that failed when it was written
            self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _step_of(line: str) -> int | None:
    """The step of a line, or None for one that a killed run left half written."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The objects of a metrics.jsonl, half-written ones left out; none if there is no such file."""
    return [json.loads(line) for line in _lines(Path(path)) if _step_of(line) is not None]


class TensorBoardWriter:
    """Event files in ``WORKDIR/tensorboard``, by the tensorboardX package."""

    def __init__(self, folder: Path, start_step: int):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "log.tensorboard = True: the package tensorboardX is not installed; "
                "pip install tensorboardX, or --config.log.tensorboard=false"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)

    def write(self, step: int, scalars: Scalars) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Throughput:
    """Rates over the steps finished since the last reading, on the host's clock."""

    def __init__(self, batch_size: int, flops_per_image: float, waited_s: Callable[[], float]):
        self._batch_size = batch_size
        self._flops_per_image = flops_per_image
        self._waited_s = waited_s  # seconds spent waiting for data since the run began
        self._start()

    def _start(self) -> None:
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
        self._start()
        return rates if utilisation is None else rates | {"perf/mfu": utilisation}
