"""Prints what an export, import or comparison did, as tables."""

from rich.console import Console
from rich.table import Table

from nepa_jax.export.convert import Report
from nepa_jax.export.parity import LARGEST_DIFFERENCE, ParityReport


def print_names(names: Report) -> None:
    """Every name pair, layers folded together, then all that did not fit."""
    table = Table("theirs", "ours", "arrays")
    for (theirs, ours), count in _folded(names.mapped).items():
        table.add_row(theirs, ours, str(count))
    for kind in ("missing", "unexpected"):
        for name in getattr(names, kind):
            table.add_row(name, f"[red]{kind}[/red]", "")
    for name, found, expected in names.misshapen:
        table.add_row(name, f"[red]{found}, expected {expected}[/red]", "")
    Console().print(table)
    print(
        f"{len(names.mapped)} mapped, {len(names.missing)} missing, "
        f"{len(names.unexpected)} unexpected, {len(names.misshapen)} of another shape"
    )


def _folded(mapped: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Counts name pairs that differ in their layer alone."""
    counts: dict[tuple[str, str], int] = {}
    for theirs, ours in mapped:
        key = ".".join("N" if part.isdecimal() else part for part in theirs.split(".")), ours
        counts[key] = counts.get(key, 0) + 1
    return counts


def print_parity(report: ParityReport) -> None:
    """The largest difference of every hidden state."""
    table = Table("hidden state", "largest difference")
    for name, difference in report.differences.items():
        table.add_row(name, f"{difference:.2e}")
    Console().print(table)
    verdict = "equal" if report.equal else "NOT equal"
    print(
        f"{verdict} in {report.library}: largest difference {report.largest:.2e}, "
        f"allowed {LARGEST_DIFFERENCE:.0e}"
    )
