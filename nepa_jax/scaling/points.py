"""What a law is fitted to: one row for a run, from a CSV by the names of its columns."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nepa_jax.base.errors import UserError

FLOPS_PER_PRODUCT = 6.0  # where no column has the samples: D = C / 6N
RAISED = {"nepa": 1.0}  # what is added to an objective's loss: NEPA's is a negative cosine


class Columns(NamedTuple):
    """Which column is what; None: there is none."""

    parameters: str = "parameters"
    flops: str = "training_flops"
    loss: str = "loss"
    samples: str | None = None
    unique: str | None = None
    error: str | None = None
    objective: str | None = None


@dataclass(frozen=True)
class Points:
    """Runs, in order; float64 [n] but for words. NaN: the run has no such number."""

    name: np.ndarray  # str: a line of the CSV, or a workdir
    objective: np.ndarray  # str; "" where all are of one
    parameters: np.ndarray
    samples: np.ndarray  # seen, with repeats
    flops: np.ndarray  # of the training
    loss: np.ndarray
    unique: np.ndarray  # different samples
    error: np.ndarray  # downstream, lower is better

    def __len__(self) -> int:
        return len(self.name)

    def take(self, which: np.ndarray) -> "Points":
        """Some of them."""
        return Points(*(getattr(self, field.name)[which] for field in fields(self)))

    def raised(self, offset: float) -> "Points":
        """With a constant added to the loss."""
        return replace(self, loss=self.loss + offset)


def read_csv(path: Path, columns: Columns) -> Points:
    """The rows of a CSV.

    An empty, infinite or NaN loss is one of a run that diverged; it is kept, as NaN.

    Raises:
        UserError: the file or a column is missing, or a cell is no number.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            head = list(reader.fieldnames or ())
            _require(path, head, columns)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a CSV ({error})") from None
    if not rows:
        raise UserError(f"{path}: holds no row below its head; give a line for each run")
    lines = np.arange(len(rows)) + 2
    numbers = {key: _numbers(path, rows, getattr(columns, key)) for key in _NUMBERS}
    for key in ("parameters", "flops"):
        _require_above_0(path, getattr(columns, key), numbers[key], lines)
    if columns.samples is None:
        numbers["samples"] = numbers["flops"] / (FLOPS_PER_PRODUCT * numbers["parameters"])
    _require_above_0(path, columns.samples or "samples", numbers["samples"], lines)
    words = [(row[columns.objective] or "").strip() if columns.objective else "" for row in rows]
    return Points(np.array([f"line {line}" for line in lines]), np.array(words), **numbers)


_NUMBERS = ("parameters", "flops", "loss", "samples", "unique", "error")


def _require(path: Path, head: Sequence[str], columns: Columns) -> None:
    missing = [name for name in columns if name is not None and name not in head]
    if missing:
        raise UserError(
            f"{path}: has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(head) or 'none'}: name them with --columns=PARAMETERS,FLOPS,LOSS"
        )


def _numbers(path: Path, rows: Sequence[Mapping[str, str]], column: str | None) -> np.ndarray:
    """NaN for what is empty, and for all without a column."""
    if column is None:
        return np.full(len(rows), np.nan)
    return np.array([_number(path, line, column, row[column]) for line, row in enumerate(rows, 2)])


def _number(path: Path, line: int, column: str, text: str | None) -> float:
    try:
        value = float(text) if text and text.strip() else math.nan
    except ValueError:
        raise UserError(
            f"{path}, line {line}: {column} = {text!r} is no number; leave it empty if the run has none"
        ) from None
    return value if math.isfinite(value) else math.nan


def _require_above_0(path: Path, column: str, values: np.ndarray, lines: np.ndarray) -> None:
    wrong = ~(values > 0)
    if wrong.any():
        raise UserError(
            f"{path}, line {lines[wrong][0]}: {column} = {values[wrong][0]:g} must be above 0"
            + (f" (and {wrong.sum() - 1} more)" if wrong.sum() > 1 else "")
        )


# Exclusions


class Excluded(NamedTuple):
    """A run that is not fitted, and why."""

    name: str
    rule: str
    parameters: float
    flops: float
    loss: float | None


def excluding(points: Points, rules: Sequence[str]) -> tuple[np.ndarray, list[Excluded]]:
    """Which runs are fitted, bool [n], and the others with their rule.

    Args:
        points: all.
        rules: ``highest:5`` (the five highest losses), ``flops<1e19``, ``loss>4``, each of what is left;
            runs without a finite loss always go.

    Raises:
        UserError: a rule is none of these.
    """
    kept, found = np.isfinite(points.loss), []
    found += _named(points, ~kept, "the loss is not finite: the run diverged, or has not ended")
    for rule in rules:
        goes = kept & _by_rule(points, kept, rule)
        found += _named(points, goes, rule)
        kept = kept & ~goes
    return kept, found


def _by_rule(points: Points, kept: np.ndarray, rule: str) -> np.ndarray:
    if (count := rule.removeprefix("highest:")) != rule and count.isdecimal():
        order = np.argsort(np.where(kept, -points.loss, np.inf), kind="stable")
        return np.isin(np.arange(len(points)), order[: int(count)])
    for sign, column in (("flops<", points.flops), ("loss>", points.loss)):
        if rule.startswith(sign):
            try:
                limit = float(rule.removeprefix(sign))
            except ValueError:
                break
            return column < limit if sign[-1] == "<" else column > limit
    raise UserError(f"--exclude={rule}: is no rule; give highest:5, flops<1e19, or loss>4")


def _named(points: Points, which: np.ndarray, rule: str) -> list[Excluded]:
    return [
        Excluded(
            str(points.name[i]), rule, float(points.parameters[i]), float(points.flops[i]),
            float(points.loss[i]) if np.isfinite(points.loss[i]) else None,
        )
        for i in np.flatnonzero(which)
    ]  # fmt: skip


def budgets_of(flops: np.ndarray) -> np.ndarray:
    """The budget that each run belongs to, int [n] from 0: those within a quarter of its least."""
    order, found, least, budget = np.argsort(flops), np.zeros(len(flops), int), 0.0, -1
    for i in order:
        if flops[i] > 1.25 * least:
            least, budget = flops[i], budget + 1
        found[i] = budget
    return found


LEAST_RUNS, LEAST_SIZES, LEAST_BUDGETS = 8, 3, 2


def problem(points: Points) -> str:
    """Why no law can be fitted to these, with the remedy; "" if it can."""
    sizes = len(np.unique(points.parameters))
    budgets = len(np.unique(budgets_of(points.flops))) if len(points) else 0
    if (points.loss <= 0).any():
        worst = points.loss.argmin()
        return (
            f"{points.name[worst]}: loss = {points.loss[worst]:g} is not above 0, and a law of powers "
            "cannot go there; give --offset=1 for NEPA's loss, which is a negative cosine"
        )
    if sizes < LEAST_SIZES:
        return f"{sizes} size{'s' * (sizes != 1)} of model: a law in N needs {LEAST_SIZES} or more; train other sizes"
    if budgets < LEAST_BUDGETS:
        return f"{budgets} budget of FLOPs: a law in D needs {LEAST_BUDGETS} or more; train longer or shorter, too"
    if len(points) < LEAST_RUNS:
        return f"{len(points)} runs for five constants: give {LEAST_RUNS} or more"
    return ""
