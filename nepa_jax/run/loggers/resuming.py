"""The same run in a tool over all starts: one id, and every step once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nepa_jax.base.progress import warn
from nepa_jax.base.text import read_json
from nepa_jax.run.loggers.background import Logger
from nepa_jax.run.metrics import METRICS, Scalars, read_metrics

MARKS = "loggers"  # folder in a workdir


@dataclass(frozen=True)
class About:
    """What a tool is told of the run that it shows."""

    workdir: Path
    config: Mapping[str, Any]  # resolved, by dotted key
    start: int  # the step that this start goes on from

    @property
    def name(self) -> str:
        return self.workdir.resolve().name


class Mark(NamedTuple):
    """What a tool has of a run, in ``WORKDIR/loggers/TOOL.json``."""

    id: str = ""  # of the run there; "": it has none
    step: int = 0  # the last one it has got


def read_mark(path: Path) -> Mark:
    """None of it is there if the file is not, or not ours."""
    try:
        found = read_json(path, dict)
        return Mark(str(found["id"]), int(found["step"]))
    except FileNotFoundError:
        return Mark()
    except (OSError, ValueError, KeyError, TypeError) as error:
        warn(f"{path}: cannot be read ({error!r}); the run gets a new id there")
        return Mark()


def write_mark(path: Path, mark: Mark) -> None:
    path.parent.mkdir(exist_ok=True)
    replacement = path.with_suffix(".tmp")
    replacement.write_text(json.dumps(mark._asdict()) + "\n")
    replacement.replace(path)


class Resumed:
    """Gives a logger each step once: what it has not got so far first, and nothing that it has.

    Steps that a restart does again are the same to the bit, so that what a tool has, it keeps; most
    could not take it back. What it missed, while it failed or was not asked for, is in metrics.jsonl.
    """

    def __init__(self, logger: Logger, path: Path, had: Mark):
        self._logger = logger
        self._path = path
        self._had = self._has = had
        write_mark(path, had)

    def catch_up(self, about: About) -> None:
        for row in read_metrics(about.workdir / METRICS):
            step = int(row.pop("step"))
            if step <= about.start:
                self.scalars(step, row)

    def scalars(self, step: int, scalars: Scalars) -> None:
        if step > self._had.step:
            self._logger.scalars(step, scalars)
            self._keep(step)

    def picture(self, step: int, pixels: np.ndarray) -> None:
        if step > self._had.step:
            self._logger.picture(step, pixels)
            self._keep(step)

    def _keep(self, step: int) -> None:
        if step > self._has.step:
            self._has = self._has._replace(step=step)
            write_mark(self._path, self._has)

    def close(self, summary: Scalars, ended_well: bool) -> None:
        self._logger.close(summary, ended_well)
