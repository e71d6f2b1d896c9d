"""Prints what an export, import or comparison did, as tables."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nepa_jax.base.text import printable
from nepa_jax.export.parity import LARGEST_DIFFERENCE, ParityReport
from nepa_jax.formats.fit import Fit


def print_names(names: Fit) -> None:
    """Every name pair, layers folded together, then all that did not fit."""
    rows = [
        (Text(printable(theirs)), Text(printable(ours)), str(count))
        for (theirs, ours), count in _folded(names.mapped).items()
    ]
    for kind in ("missing", "unexpected"):
        rows += [(Text(printable(name)), Text(kind, "red"), "") for name in getattr(names, kind)]
    for name, found, expected in names.misshapen:
        wrong = Text(f"{found}, expected {expected}", "red")
        rows.append((Text(printable(name)), wrong, ""))
    _print_table(("theirs", "ours", "arrays"), rows)
    print(
        f"{len(names.mapped)} mapped, {len(names.missing)} missing, "
        f"{len(names.unexpected)} unexpected, {len(names.misshapen)} of another shape"
    )


def _print_table(header: Sequence[str], rows: Sequence[Sequence[Text | str]]) -> None:
    """Whole, however long the names are: on a terminal they are folded, a file has any width."""
    table = Table()
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console.width = console.measure(table).maximum
    console.print(table)


def _folded(mapped: list[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Counts name pairs that differ in their layer alone."""
    counts: dict[tuple[str, str], int] = {}
    for theirs, ours in mapped:
        key = re.sub(r"(?<=\.)\d+(?=\.)|(?<=block_)\d+", "N", theirs), ours
        counts[key] = counts.get(key, 0) + 1
    return counts


def print_parity(report: ParityReport) -> None:
    """The largest difference of every hidden state."""
    rows = [(name, f"{difference:.2e}") for name, difference in report.differences.items()]
    _print_table(("hidden state", "largest difference"), rows)
    verdict = "equal" if report.equal else "NOT equal"
    print(
        f"{verdict} in {report.library}: largest difference {report.largest:.2e}, "
        f"allowed {LARGEST_DIFFERENCE:.0e}"
    )
