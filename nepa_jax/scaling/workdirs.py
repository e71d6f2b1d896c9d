"""Points of runs: what each workdir's config and log say of it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.base.text import read_json
from nepa_jax.config import from_json
from nepa_jax.objectives.base import load_objective
from nepa_jax.report.workdirs import find_workdirs
from nepa_jax.run.log import Log, read_log
from nepa_jax.scaling.points import Points

LOSSES = ("eval/loss", "train/loss")  # the first that all runs have is taken
LAST = 0.05  # of a run's steps: what a training loss is averaged over


class _Run(NamedTuple):
    name: str
    config: ConfigDict
    log: Log
    error: float
    done: bool


def read_runs(paths: Sequence[str], probe: str | None) -> tuple[Points, dict[str, Any]]:
    """A point for every workdir here or below, and what its numbers are.

    A run that has not reached its last step has the loss NaN.

    Args:
        paths: workdirs, or folders with some below.
        probe: whose ``1 - number`` is the downstream error, such as ``knn``; None: none.

    Raises:
        UserError: a workdir has no readable config or log, or no loss is logged by all.
    """
    runs = [_read(name, folder, probe) for name, folder in find_workdirs(paths).items()]
    key = next((k for k in LOSSES if all(k in run.log.columns for run in runs)), None)
    if key is None:
        lacking = next(run.name for run in runs if LOSSES[-1] not in run.log.columns)
        raise UserError(
            f"{lacking}: its metrics.jsonl has no {' or '.join(LOSSES)}; train it first"
        )
    rows = [_row(run, key) for run in runs]
    names = [run.name for run in runs]
    objectives = [row.pop("objective") for row in rows]
    numbers = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
    points = Points(np.array(names), np.array(objectives), **numbers)
    how = "the last" if key == LOSSES[0] else f"mean of the last {LAST:.0%} of steps"
    return points, {"loss": f"{key}, {how}", "flops": "exact, of the objective's own programs"}


def _read(name: str, folder: Path, probe: str | None) -> _Run:
    try:
        config = from_json((folder / "config.json").read_text())
        log = read_log(folder / "metrics.jsonl")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: is no whole workdir ({error}); leave it out") from None
    return _Run(name, config, log, _error(folder, probe), (folder / "DONE").exists())


def _error(folder: Path, probe: str | None) -> float:
    if probe is None:
        return math.nan
    file = folder / "eval" / f"{probe}.json"
    try:
        report = read_json(file, dict)
        return 1 - float(report["number"][report["metric"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: holds no score ({type(error).__name__}); first "
            f"nepa-jax eval {probe} {folder} --data=DIR"
        ) from None


def _row(run: _Run, key: str) -> dict[str, Any]:
    config = run.config
    facts = load_objective(config.objective.name).describe(config)
    total = int(config.schedule.total_steps)
    samples = float(total * config.data.batch_size)
    return {
        "objective": config.objective.name.rpartition(".")[2],
        "parameters": facts.parameters,
        "samples": samples,
        "flops": facts.flops * samples,
        "loss": _loss(run, key, total),
        "unique": _unique(config),
        "error": run.error,
    }


def _loss(run: _Run, key: str, total: int) -> float:
    """NaN of a run that is not done, or whose loss ended so."""
    steps, values = run.log.steps, run.log.columns[key]
    if not run.done and (not len(steps) or steps[-1] < total):
        at = steps[-1] if len(steps) else 0
        warn(f"{run.name}: stands at step {at} of {total}; it is left out")
        return math.nan
    if key == LOSSES[0]:
        found = values[np.isfinite(values)]
        return float(found[-1]) if len(found) else math.nan
    return float(values[steps > steps[-1] * (1 - LAST)].mean())


def _unique(config: ConfigDict) -> float:
    """Images in the split that was trained on; NaN where the data set is not at hand."""
    try:
        manifest = read_json(Path(config.data.path) / "dataset.json", dict)
        return float(manifest["splits"][config.data.split]["num_examples"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.nan
