"""What a run's evaluations found, of the files that ``nepa-jax eval`` writes."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nepa_jax.base.text import read_json
from nepa_jax.evals.card import PER_CENT

Report = dict[str, Any]
MOST_TEXT, MOST_ROWS = 200_000, 500


@dataclass
class Evaluations:
    """Of one encoder."""

    reports: list[Report] = field(default_factory=list)
    table: list[list[str]] = field(default_factory=list)  # results.csv, its head first
    card: str = ""  # Markdown
    best: dict[str, Any] | None = None  # what a run with labels says of its best checkpoint


def read_evaluations(folder: Path, notes: list[str]) -> Evaluations:
    """All in a folder; what is no report is named in ``notes``."""
    found = Evaluations()
    for path in sorted(folder.glob("*.json")):
        try:
            if path.name == "best.json":
                found.best = _best(read_json(path, dict))
                continue
            found.reports.append(_report(read_json(path, dict)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"{path}: is no report of an evaluation ({type(error).__name__}: {error})")
    found.card = _text(folder / "card.md")
    found.table = _table(_text(folder / "results.csv"))
    return found


def _report(saved: Report) -> Report:
    """The part that is drawn. Raises what reading another thing raises."""
    metric = saved["metric"]
    untrained, best = saved["untrained"] or {}, saved["best_on_test"] or {}
    return {
        "probe": str(saved["probe"]),
        "metric": str(metric),
        "per_cent": metric in PER_CENT,
        "number": _score(saved["number"][metric]),
        "layer": _score(saved["number"].get("layer")),
        "chosen": str(saved["chosen"]),
        "chance": _score(saved["chance"]),
        "untrained": _score(untrained.get(metric)),
        "best": _score(best.get(metric)) if metric in PER_CENT else None,
        "by_layer": _by_layer(saved["by_layer"], metric),
        "untrained_by_layer": _by_layer(saved["untrained_by_layer"] or [], metric),
        "step": saved["step"],
        "weights": str(saved["weights"]),
        "data": str(saved["data"]),
    }


def _best(saved: Mapping[str, Any]) -> dict[str, Any]:
    step, score, by = saved["step"], _score(saved["score"]), str(saved["by"])
    return {"step": _score(step), "score": score, "by": by}


def _by_layer(rows: list[dict[str, Any]], metric: str) -> list[list[float]]:
    """Layer and score, of the rows that are of a layer."""
    return [
        [_score(row["layer"]), _score(row[metric])] for row in rows if row.get("layer") is not None
    ]


def _score(value: Any) -> float | None:
    """Raises TypeError if it is no number."""
    return None if value is None else float(value)


def _text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return file.read(MOST_TEXT)
    except OSError:
        return ""


def _table(text: str) -> list[list[str]]:
    try:
        return [row for row in csv.reader(text.splitlines()) if row][:MOST_ROWS]
    except csv.Error:
        return []
