"""Everything that one workdir tells of its run, as JSON values for the page."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nepa_jax.base.text import printable
from nepa_jax.config import flat_keys, from_json
from nepa_jax.report.alarms import rung
from nepa_jax.report.commands import commands_of
from nepa_jax.report.evaluations import read_evaluations
from nepa_jax.report.thinning import thinned
from nepa_jax.run.goodput import Start, read_starts, shares
from nepa_jax.run.lock import STALE_S, holder_of
from nepa_jax.run.log import Log, damage, read_log

Story = dict[str, Any]
Config = Mapping[str, Any]  # dotted key -> value
EMPTY = Log(np.zeros(0, np.int64), {}, {}, [])
QUIET = 5  # times as long as usual without a line: something is wrong
QUIET_S = 120.0


def story_of(name: str, workdir: Path, buckets: int, now: float) -> Story:
    """What a run's files say at a moment; what of them cannot be read is among its ``notes``.

    Args:
        name: of the run, on the page.
        workdir: of the run.
        buckets: of a curve, see :mod:`nepa_jax.report.thinning`.
        now: seconds since the epoch.
    """
    notes: list[str] = []
    log, last = _log(workdir, notes)
    config = _config(workdir, notes)
    starts = read_starts(workdir / "goodput.json")
    evaluations = read_evaluations(workdir / "eval", notes)
    place = printable(str(workdir))
    return {
        "name": name,
        "path": place,
        "method": str(config.get("objective.name", "")).rpartition(".")[2],
        "step": max([0, *log.steps[-1:].tolist(), *(start.last_step for start in starts[-1:])]),
        "total": _number(config.get("schedule.total_steps")),
        "batch_size": _number(config.get("data.batch_size")),
        "state": _state(workdir, log, last, now),
        "began": starts[0].began if starts else None,
        "last": last,
        "latest": {key: _latest(column) for key, column in log.columns.items()},
        "curves": _curves(log, buckets),
        "lines": log.lines,
        "restarts": _restarts(starts, log),
        "starts": [asdict(start) for start in starts],
        "shares": shares(starts) if starts else {},
        "alarms": rung(log, str(config.get("objective.name", "")), notes),
        "evaluations": evaluations.reports,
        "results": evaluations.table,
        "card": evaluations.card,
        "best": evaluations.best,
        "config": {key: _word(value) for key, value in config.items()},
        "commands": commands_of(workdir, config, evaluations.reports),
        "notes": list(map(printable, notes)),
    }


def _log(workdir: Path, notes: list[str]) -> tuple[Log, float | None]:
    """The metrics, and when the last ones were written."""
    path = workdir / "metrics.jsonl"
    try:
        last = path.stat().st_mtime
        log = read_log(path)
    except FileNotFoundError:
        return EMPTY, None
    except OSError as error:
        notes.append(f"{path}: cannot be read ({error.strerror})")
        return EMPTY, None
    if log.damaged:
        notes.append(damage(path, log.damaged, log.lines))
    if log.left_out:
        notes.append(f"{path}: {log.left_out:,} more metrics than a page shows are left out")
    return log, last if len(log.steps) else None


def _config(workdir: Path, notes: list[str]) -> Config:
    path = workdir / "config.json"
    try:
        return flat_keys(from_json(path.read_text()))
    except FileNotFoundError:
        notes.append(f"{path} is not there: neither the config nor the method is known")
    except OSError as error:
        notes.append(f"{path}: cannot be read ({error.strerror})")
    except ValueError as error:
        notes.append(f"{path} {error}")
    return {}


def _state(workdir: Path, log: Log, last: float | None, now: float) -> str:
    """``done``; ``running``, and with a logged step ``quiet`` if its lines have stopped; ``lost``, where
    the last sign of life is old; ``stopped``, where the run itself said that it ended."""
    if (workdir / "DONE").exists():
        return "done"
    holder = holder_of(workdir)
    if holder is None:
        return "stopped"
    if now - holder.beat > STALE_S:
        return "lost"
    if last is not None and now - last > max(QUIET_S, QUIET * _usual_s(log)):
        return "quiet"
    return "running"


def _usual_s(log: Log) -> float:
    """Seconds between the last logged lines."""
    step_s = log.columns.get("time/step_s", np.zeros(0))[-20:]
    steps = np.diff(log.steps[-21:])
    usual = np.nanmedian(step_s) if np.isfinite(step_s).any() else 0.0
    return float(usual * (steps.max() if len(steps) else 0.0))


def _curves(log: Log, buckets: int) -> dict[str, Any]:
    none = np.zeros(0, np.int64)
    return {
        key: thinned(log.steps, column, log.lost.get(key, none), buckets)
        for key, column in sorted(log.columns.items())
    }


def _latest(column: np.ndarray) -> float | None:
    finite = column[np.isfinite(column)]
    return float(f"{finite[-1]:.7g}") if len(finite) else None


def _restarts(starts: list[Start], log: Log) -> list[dict[str, Any]]:
    """Where the run went on after a stop: of its own account, and where its log goes back."""
    found = {
        start.first_step: {
            "step": start.first_step,
            "again": max(former.last_step - start.first_step, 0),
            "away_s": max(start.began - former.ended, 0.0),
        }
        for former, start in pairwise(starts)
    }
    for step, again in log.went_back:  # the first line of a start is behind its first step
        if not any(first < step for first in found):
            found[step] = {"step": step, "again": again, "away_s": None}
    return [found[step] for step in sorted(found)]


def _number(value: Any) -> float | None:
    """A number of a config of others', if it is one."""
    return value if type(value) in (int, float) and math.isfinite(value) else None


def _word(value: Any) -> str:
    """A value of a config as it is written in JSON."""
    return printable(json.dumps(value, ensure_ascii=False, default=str))
