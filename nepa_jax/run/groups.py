"""The optimizer's table, as a run shows and keeps it."""

import csv
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from nepa_jax.base.errors import writing
from nepa_jax.optim import Row

FILE = "optimizer.csv"


def write(folder: Path, rows: Sequence[Row]) -> None:
    """``optimizer.csv``: a line for each place and decay, with the parameters that stand there."""
    with writing(folder / FILE), (folder / FILE).open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow((*Row._fields,))
        for row in rows:
            lines.writerow((*row[:-1], " ".join(row.names)))


def lines_of(rows: Sequence[Row]) -> Iterator[str]:
    """The same for people, a line for each place; neighbours with the same rate together."""
    for rates, found in groupby(rows, key=lambda row: (row.peak_lr, row.warmup_steps)):
        members = list(found)
        yield f"  {_span(members):<22} {_rate(*rates):<34} {_sizes(members)}"


def _span(rows: Sequence[Row]) -> str:
    first, last = rows[0].place, rows[-1].place
    return first if first == last else f"{first} … {last}"


def _rate(peak_lr: float, warmup_steps: int) -> str:
    return f"lr {peak_lr:.3g}, warm-up {warmup_steps:,} steps" if peak_lr else "frozen"


def _sizes(rows: Sequence[Row]) -> str:
    decayed = sum(row.parameters for row in rows if row.weight_decay)
    others = sum(row.parameters for row in rows if not row.weight_decay)
    return f"{decayed:,} parameters decay, {others:,} do not"
