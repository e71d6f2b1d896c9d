"""The folder of ``scaling fit``: fit.json, points.csv, figures and report.md."""

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from nepa_jax.base.errors import writing
from nepa_jax.base.text import to_json
from nepa_jax.scaling import figures, report
from nepa_jax.scaling.analysis import Analysis
from nepa_jax.scaling.points import Points


def write(folder: Path, title: str, analysis: Analysis) -> list[Path]:
    """All of one fit.

    Raises:
        UserError: it cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        table, page, result = (folder / name for name in ("points.csv", "report.md", "fit.json"))
        table.write_text(table_of(analysis))
        drawn = figures.draw(analysis, folder)
        pictures = [path.name for path in drawn if path.suffix == ".png"]
        page.write_text(report.text_of(title, analysis.found, pictures))
        result.write_text(to_json(analysis.found) + "\n")
    return [result, table, page, *drawn]


def write_comparison(folder: Path, found: dict[str, Any]) -> list[Path]:
    """What objectives reach at equal FLOPs. Raises as :func:`write`."""
    with writing(folder):
        drawn = figures.draw_comparison(found, folder)
        (folder / "report.md").write_text(report.comparison_text(found))
    return [folder / "report.md", *drawn]


def table_of(analysis: Analysis) -> str:
    """Every point with what became of it: ``fitted``, or the rule that excluded it; losses with offset."""
    limit = analysis.found["holdout"].get("flops_from", np.inf)
    rules = {run["name"]: run["rule"] for run in analysis.found["excluded"]}
    text = io.StringIO()
    names = [field.name for field in fields(Points)]
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*names, "held_out", "use"])
    for points in (analysis.points, analysis.left_out):
        columns = asdict(points).values()
        for row in zip(*(column.tolist() for column in columns), strict=True):
            held = rules.get(row[0]) is None and row[names.index("flops")] >= limit
            table.writerow([*row, int(held), rules.get(row[0], "fitted")])
    return text.getvalue()
