"""Accuracy of frozen features, layer by layer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from nepa_jax.visualize import style

HEADINGS = {"knn": "kNN (20 neighbours)", "logreg": "logistic regression"}

# Source of features -> probe -> accuracy in [0, 1] of every layer, or of the one there is.
Accuracies = Mapping[str, Mapping[str, Sequence[float]]]


def draw(accuracies: Accuracies, path: str | Path, chance: float = 0.1) -> Path:
    """Draws one panel per probe; what has no layers becomes a level line.

    Args:
        accuracies: e.g. ``{"nepa": {"knn": [0.3, 0.6]}, "raw_pixels": {"knn": [0.4]}}``.
        path: where the PNG goes.
        chance: accuracy of guessing.
    """
    probes = list(next(iter(accuracies.values())))
    made = style.figure(4.6 * len(probes), 3.9)
    all_axes = made.subplots(1, len(probes), squeeze=False, sharey=True)[0]
    for axes, probe in zip(all_axes, probes, strict=True):
        style.plain(axes, HEADINGS.get(probe, probe), "layer (0 = patch embedding)", "")
        _draw_panel(axes, {name: values[probe] for name, values in accuracies.items()}, chance)
    all_axes[0].set_ylabel("test accuracy, %")
    made.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center",
                ncols=len(accuracies) + 1, frameon=False)  # fmt: skip
    return style.save(made, path)


def _draw_panel(axes: Axes, lines: Mapping[str, Sequence[float]], chance: float) -> None:
    for index, (name, values) in enumerate(lines.items()):
        percent, look = [100 * value for value in values], _look(name, index)
        if len(percent) == 1:
            axes.axhline(percent[0], linestyle="--", **look)
        else:
            axes.plot(range(len(percent)), percent, marker="o", markersize=4, **look)
    axes.axhline(100 * chance, color=style.GRAY, linestyle=":", linewidth=1, label="chance")
    axes.set_ylim(0, 100)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _look(name: str, index: int) -> dict[str, str | float]:
    return dict(color=style.color(name, index), label=style.title(name), linewidth=1.6)
