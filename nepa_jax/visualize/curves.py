"""Training curves from one or more metrics.jsonl."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from nepa_jax.base.errors import UserError
from nepa_jax.run.metrics import read_metrics
from nepa_jax.visualize import style


class Curve(NamedTuple):
    """One metric over the run."""

    steps: np.ndarray  # int [n]
    values: np.ndarray  # float [n]


Curves = dict[str, Curve]


def read_curves(path: str | Path) -> Curves:
    """Reads the logged metrics of a run, by key.

    Of a step that was logged twice, by a run that went back to a checkpoint, the later line counts.

    Raises:
        UserError: there is no logged step in it, or no such file.
    """
    rows = {row["step"]: row for row in read_metrics(path) if "train/loss" in row}
    if not rows:
        raise UserError(f"{str(path)!r} holds no training step: let the run log at least once")
    ordered = [rows[step] for step in sorted(rows)]
    return {key: _curve(ordered, key) for key in sorted(set().union(*ordered)) if key != "step"}


def _curve(rows: list[dict[str, float]], key: str) -> Curve:
    points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), (int, float))]
    return Curve(*np.array(points, float).reshape(-1, 2).T)


def draw(runs: Mapping[str, str | Path], path: str | Path) -> Path:
    """Draws what each run learned above what its baseline gets, gradient norms and learning rates.

    Args:
        runs: name -> metrics.jsonl; "nepa" and "mae" get their own colours.
        path: where the PNG goes.
    """
    curves = {name: read_curves(source) for name, source in runs.items()}
    made = style.figure(max(8.0, 4.2 * len(curves)), 6.2)
    cells, half = made.add_gridspec(2, 2 * len(curves)), len(curves)
    for index, (name, run) in enumerate(curves.items()):
        panel = made.add_subplot(cells[0, 2 * index : 2 * index + 2])
        _draw_learning(panel, name, run)
    grad_axes = made.add_subplot(cells[1, :half])
    _draw_all(grad_axes, curves, "train/grad_norm", "gradient norm, before clipping")
    grad_axes.set_yscale("log")
    lr_axes = made.add_subplot(cells[1, half:])
    _draw_all(lr_axes, curves, "train/lr", "learning rate")
    lr_axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return style.save(made, path)


def _draw_learning(axes: Axes, name: str, run: Curves) -> None:
    """The objective against the trivial answer to it: NEPA in cosine, all others as their loss."""
    loss, color = run["train/loss"], style.color(name)
    if "train/cos_copy" in run:
        style.plain(axes, f"{style.title(name)}: cosine to the next embedding", "step", "cosine")
        axes.plot(loss.steps, -loss.values, color=color, label="prediction")
        _baseline(axes, run["train/cos_copy"], "copying the patch before")
        _spread(axes, run)
    else:
        style.plain(axes, f"{style.title(name)}: loss", "step", "loss")
        axes.plot(loss.steps, loss.values, color=color, label="prediction")
    if "train/loss_mean_patch" in run:
        axes.set_ylabel("squared error, removed patches")
        _baseline(axes, run["train/loss_mean_patch"], "the mean patch everywhere")
    style.legend(axes)


def _baseline(axes: Axes, curve: Curve, label: str) -> None:
    axes.plot(*curve, color=style.GRAY, linestyle="--", linewidth=1.2, label=label)


def _spread(axes: Axes, run: Curves) -> None:
    if "train/target_std" in run:
        label = "spread of targets (0 = collapse)"
        axes.plot(*run["train/target_std"], color=style.PALETTE[2], linewidth=1.0, label=label)


def _draw_all(axes: Axes, curves: Mapping[str, Curves], key: str, heading: str) -> None:
    """One metric of every run that logs it."""
    style.plain(axes, heading, "step", "")
    for index, (name, run) in enumerate(curves.items()):
        if key in run:
            color = style.color(name, index)
            axes.plot(*run[key], color=color, linewidth=1.2, label=style.title(name))
    if len(curves) > 1:
        style.legend(axes)
