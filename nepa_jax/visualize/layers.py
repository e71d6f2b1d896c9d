"""What probes find, layer by layer, beside the untrained encoder and chance."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from nepa_jax.evals.card import PER_CENT
from nepa_jax.visualize import style

COLUMNS = 3

Report = Mapping[str, Any]  # as nepa_jax.evals.results writes it


def draw(reports: Sequence[Report], path: str | Path) -> Path:
    """Draws a panel for each report; a ring marks the number that is reported.

    Args:
        reports: of one encoder.
        path: where the PNG goes.
    """
    columns = min(COLUMNS, len(reports))
    rows = -(-len(reports) // columns)
    made = style.figure(4.2 * columns + 0.6, 3.3 * rows + 0.5)
    panels = made.subplots(rows, columns, squeeze=False).flat
    for panel, report in zip(panels, reports, strict=False):
        _draw_panel(panel, report)
    for panel in list(panels)[len(reports) :]:
        panel.set_axis_off()
    handles = {
        label: handle
        for panel in made.axes
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    made.legend(handles.values(), handles.keys(), loc="outside lower center",
                ncols=len(handles), frameon=False)  # fmt: skip
    return style.save(made, path)


def _draw_panel(panel: Axes, report: Report) -> None:
    metric = report["metric"]
    scale = 100.0 if metric in PER_CENT else 1.0
    method = report["objective"].rpartition(".")[2]
    style.plain(
        panel, report["probe"], "layer (0 = embedding)", metric + (", %" if scale > 1 else "")
    )
    for name, look in _curves(method):
        rows = report[f"{name}by_layer"] or ()
        found = [(row.get("layer"), scale * row[metric]) for row in rows]
        if found:
            panel.plot(*zip(*found, strict=True), marker="o", markersize=3.5, linewidth=1.6, **look)
    number = report["number"]
    panel.plot(
        number.get("layer"), scale * number[metric], "o", markersize=10, markerfacecolor="none",
        markeredgecolor="black", label="reported",
    )  # fmt: skip
    if report["chance"] is not None:
        level = scale * report["chance"]
        panel.axhline(level, color=style.GRAY, linestyle=":", linewidth=1, label="chance")
    panel.xaxis.get_major_locator().set_params(integer=True)


def _curves(method: str) -> Iterator[tuple[str, dict[str, str]]]:
    yield "untrained_", dict(color=style.color("untrained"), label=style.title("untrained"))
    yield "", dict(color=style.color(method), label=style.title(method))
