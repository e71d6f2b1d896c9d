"""Workdirs as runs leave them, without the runs: what a report is read from."""

import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import small

from nepa_jax.config import to_json

BEGAN = 1_790_000_000.0  # seconds since the epoch
STEP_S = 0.4


def metrics_of(step: int, total: int, draw: random.Random) -> dict[str, float]:
    """A logged step of a run that goes well."""
    left = math.exp(-4 * step / total)
    return {
        "step": step,
        "train/loss": -0.95 + 0.9 * left + draw.gauss(0, 0.01),
        "train/grad_norm": math.exp(draw.gauss(0, 0.3)) * (0.3 + left),
        "train/lr": 1e-3 * min(1, 10 * step / total) * (1 + math.cos(math.pi * step / total)) / 2,
        "train/target_std": 0.9 - 0.1 * left,
        "train/skipped_steps": 0.0,
        "perf/images_per_s": 8 / STEP_S + draw.gauss(0, 0.2),
        "perf/mfu": 0.5 + draw.gauss(0, 0.005),
        "time/step_s": STEP_S + abs(draw.gauss(0, 0.01)),
        "time/data_wait_s": abs(draw.gauss(0, 0.002)),
        "data/queue": 4.0,
    }


def start(first: int, last: int, began: float) -> dict[str, Any]:
    """An entry of goodput.json."""
    seconds = {"start": 4.0, "restore": 0.5, "compile": 21.0, "data": 3.0, "checkpoint": 2.0}
    ended = began + sum(seconds.values()) + STEP_S * (last - first)
    return dict(began=began, ended=ended, first_step=first, last_step=last, seconds=seconds, saved_step=last)  # fmt: skip


def report(probe: str, metric: str = "top1", **more: Any) -> dict[str, Any]:
    """What `nepa-jax eval` writes of a probe of a model with four layers."""
    rows = [{"layer": n, "pool": "mean", metric: 0.2 + 0.1 * n - 0.02 * n**2} for n in range(5)]
    untrained = [row | {metric: 0.15 + 0.01 * row["layer"]} for row in rows]
    return {
        "probe": probe, "weights": "runs/a", "step": 2000, "data": "data/photos", "metric": metric,
        "number": rows[2], "chosen": "the layer by top1 on a held-out part", "chance": 0.1,
        "untrained": untrained[2], "best_on_test": rows[3], "by_layer": rows, "untrained_by_layer": untrained,
    } | more  # fmt: skip


def write_log(workdir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_workdir(workdir: Path, steps: int = 2000, every: int = 10, seed: int = 0) -> Path:
    """A run that is over, with one restart at 40 % and evaluations of two probes."""
    draw = random.Random(seed)
    write_log(workdir, (metrics_of(step, steps, draw) for step in range(every, steps + 1, every)))
    config = small.resolved("nepa", run__seed=str(seed), schedule__total_steps=str(steps))
    (workdir / "config.json").write_text(to_json(config))
    restart = steps * 2 // 5
    first = start(0, restart + 3 * every, BEGAN + 1e5 * seed)
    starts = [first, start(restart, steps, first["ended"] + 90)]
    (workdir / "goodput.json").write_text(json.dumps(starts))
    (workdir / "DONE").write_text(f"{steps}\n")
    write_evaluations(workdir, report("knn"), report("rank", "rankme", chance=None))
    return workdir


def write_evaluations(workdir: Path, *reports: Mapping[str, Any]) -> None:
    folder = workdir / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    for number, found in enumerate(reports):
        (folder / f"{number}.json").write_text(json.dumps(found))
    (folder / "results.csv").write_text('probe,value\nknn,0.32\n"a, b",0.1\n')
    (folder / "card.md").write_text("# What the features are worth\n")


def write_picture(path: Path, side: int = 48) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(small.png(small.images(1, side=side)[0]))
    return path
