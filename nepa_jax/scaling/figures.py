"""What a law looks like: data, fit, interval, held-out points. Each as PNG and PDF."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from nepa_jax.scaling.analysis import Analysis
from nepa_jax.scaling.law import loss, optimum
from nepa_jax.visualize import style

COLOURS = "viridis"


def draw(analysis: Analysis, folder: Path) -> list[Path]:
    """Writes ``frontier``, ``isoflop`` and ``residuals``, each .png and .pdf."""
    made = {"frontier": _frontier, "residuals": _residuals}
    if analysis.parabolas:
        made["isoflop"] = _isoflop
    return [path for name, of in made.items() for path in _both(of(analysis), folder / name)]


def draw_comparison(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Errors of objectives over equal FLOPs, with their intervals."""
    made = style.figure(6.4, 4.2)
    axes = made.add_subplot()
    style.plain(axes, "downstream error at equal FLOPs", "training FLOPs", "error of the best run")
    for index, (name, errors) in enumerate(found["error"].items()):
        color = style.color(name, index)
        low, high = np.array(found["interval"][name]).T
        axes.fill_between(found["flops"], low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(found["flops"], errors, color=color, marker="o", label=style.title(name))
    axes.set_xscale("log")
    style.legend(axes)
    return _both(made, folder / "comparison")


def _both(made: Figure, place: Path) -> list[Path]:
    return [style.save(made, place.with_suffix(suffix)) for suffix in (".png", ".pdf")]


def _held_out(analysis: Analysis) -> np.ndarray:
    """Which of the points, bool [n]."""
    limit = analysis.found["holdout"].get("flops_from", np.inf)
    return analysis.points.flops >= limit


def _frontier(analysis: Analysis) -> Figure:
    """Loss over compute, and the least loss that the law gives a budget."""
    points, out = analysis.points, _held_out(analysis)
    made = style.figure(7.2, 4.8)
    axes = made.add_subplot()
    style.plain(axes, "loss and compute", "training FLOPs", _loss_word(analysis))
    shown = _scatter(axes, analysis, points.flops, points.loss, out)
    low, high = points.flops.min(), points.flops.max() * 10
    flops = np.geomspace(low, high, 120)
    best = optimum(analysis.law, flops, analysis.cost).loss
    spread = optimum(analysis.many, flops, analysis.cost).loss
    band = np.nanpercentile(spread, [2.5, 97.5], axis=0)
    axes.fill_between(
        flops, *band, color=style.PALETTE[1], alpha=0.25, linewidth=0, label="95 %, runs resampled"
    )
    inside = flops <= points.flops.max()
    axes.plot(flops[inside], best[inside], color=style.PALETTE[1], label="least loss of the law")
    axes.plot(
        flops[~inside], best[~inside], color=style.PALETTE[1], linestyle="--", label="extrapolated"
    )
    lost = analysis.left_out.take(np.isfinite(analysis.left_out.loss))
    if len(lost):
        axes.plot(lost.flops, lost.loss, "x", color=style.GRAY, label="excluded")
    axes.set_xscale("log")
    axes.set_yscale("log")
    for numbered in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        numbered("{x:.3g}")
    made.colorbar(shown, ax=axes, label="parameters")
    style.legend(axes)
    return made


def _loss_word(analysis: Analysis) -> str:
    offset = analysis.found["choices"]["offset"]
    return f"loss + {offset:g}" if offset else "loss"


def _scatter(axes: Axes, analysis: Analysis, x: np.ndarray, y: np.ndarray, out: np.ndarray) -> Any:
    """Points coloured by size; squares are held out."""
    sizes = analysis.points.parameters
    norm = LogNorm(sizes.min(), sizes.max())
    for which, marker, label in ((~out, "o", "runs"), (out, "s", "held-out runs")):
        if which.any():
            edge = "black" if marker == "s" else "none"
            shown = axes.scatter(
                x[which], y[which], c=sizes[which], norm=norm, cmap=COLOURS, marker=marker, s=20,
                edgecolors=edge, linewidths=0.7, label=label,
            )  # fmt: skip
    return shown


def _isoflop(analysis: Analysis) -> Figure:
    """Of each budget the losses over size, the law's curve, the parabola and where it is lowest."""
    curves, points = analysis.parabolas, analysis.points
    made = style.figure(7.2, 4.8)
    axes = made.add_subplot()
    style.plain(
        axes, "IsoFLOP curves: a picture, its minima are biased", "parameters", _loss_word(analysis)
    )
    norm = LogNorm(curves[0].flops * 0.99, curves[-1].flops * 1.01)
    for curve in curves:
        near = (points.flops > curve.flops / 1.3) & (points.flops < curve.flops * 1.3)
        sizes = points.parameters[near]
        shown = axes.scatter(sizes, points.loss[near], c=np.full(len(sizes), curve.flops), norm=norm, cmap=COLOURS, s=14)  # fmt: skip
        color = shown.to_rgba(curve.flops)
        wide = np.geomspace(sizes.min(), sizes.max(), 60)
        said = loss(analysis.law, wide, curve.flops / analysis.cost / wide)
        axes.plot(wide, said, color=color, linewidth=1.1)
        if curve.parameters:
            parabola = np.polynomial.polynomial.polyval(np.log(wide), curve.coefficients)
            axes.plot(wide, parabola, color=color, linewidth=0.8, linestyle=":")
            lowest = np.polynomial.polynomial.polyval(np.log(curve.parameters), curve.coefficients)
            axes.plot(curve.parameters, lowest, "*", color=color, markeredgecolor="black", markersize=10)  # fmt: skip
    axes.plot([], [], color=style.GRAY, label="the law")
    axes.plot([], [], color=style.GRAY, linestyle=":", label="parabola")
    axes.plot(
        [],
        [],
        "*",
        color=style.GRAY,
        label="its minimum (flagged ones are not drawn)",
        linestyle="none",
    )
    axes.set_xscale("log")
    made.colorbar(shown, ax=axes, label="training FLOPs")
    style.legend(axes)
    return made


def _residuals(analysis: Analysis) -> Figure:
    """What the law says, against what was found; and the held-out runs with their intervals."""
    points, out, held = analysis.points, _held_out(analysis), analysis.found["holdout"]
    made = style.figure(9.6, 4.4)
    left, right = made.subplots(1, 2)
    style.plain(left, "residuals of the fit to all runs", "training FLOPs", "law / found − 1, %")
    said = loss(analysis.law, points.parameters, points.samples)
    shown = _scatter(left, analysis, points.flops, 100 * (said / points.loss - 1), out)
    left.axhline(0, color=style.GRAY, linewidth=0.8)
    left.set_xscale("log")
    made.colorbar(shown, ax=left, label="parameters")
    style.legend(left)
    style.plain(right, _held_title(held), "loss found", "predicted from smaller budgets")
    _predictions(right, held.get("runs", ()))
    return made


def _held_title(held: Mapping[str, Any]) -> str:
    if "why_not" in held:
        return "no hold-out"
    return f"held out: mean error {held['mean']:.2%}, max {held['max']:.2%}"


def _predictions(axes: Axes, runs: Sequence[Mapping[str, Any]]) -> None:
    if not runs:
        axes.set_axis_off()
        return
    found, said = (np.array([run[key] for run in runs]) for key in ("loss", "predicted"))
    ends = np.array([run["interval"] for run in runs]).T
    sides = np.maximum([said - ends[0], ends[1] - said], 0)
    axes.errorbar(found, said, yerr=sides, fmt="s", color=style.PALETTE[0], markersize=4, linewidth=0.8, label="95 % of a run")  # fmt: skip
    ends = [min(found.min(), said.min()), max(found.max(), said.max())]
    axes.plot(ends, ends, color=style.GRAY, linewidth=0.8, label="as found")
    style.legend(axes)
