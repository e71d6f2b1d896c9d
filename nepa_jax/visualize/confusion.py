"""Which classes a classifier takes for which, from the predictions that a run wrote."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np

from nepa_jax.visualize import segmentation, style

MOST = 50  # classes that can be told apart in a picture


def draw_of(folder: Path) -> list[str]:
    """Draws ``confusion.png`` in a run's ``eval`` folder, or ``segmentation.png`` of a segmenter; the
    names of the files there.

    With more than 50 classes, or without predictions, there is no picture.
    """
    if (folder / segmentation.EXAMPLES).is_file():
        segmentation.draw(folder / segmentation.EXAMPLES, folder / "segmentation.png")
    predictions = folder / "predictions.csv"
    if predictions.is_file():
        with (folder / "per_class.csv").open(newline="") as file:
            classes = [row["class"] for row in csv.DictReader(file)]
        if len(classes) <= MOST:
            draw(shares(predictions, classes), classes, folder / "confusion.png")
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def shares(predictions: Path, classes: list[str]) -> np.ndarray:
    """Of the images of each class (rows) the share taken for each (columns), [K, K]; NaN without any."""
    with predictions.open(newline="") as file:
        pairs = Counter((row["label"], row["prediction"]) for row in csv.DictReader(file))
    counts = np.array([[pairs[true, taken] for taken in classes] for true in classes], float)
    total = counts.sum(axis=1, keepdims=True)
    return np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)


def draw(found: np.ndarray, classes: list[str], path: Path) -> Path:
    """A square for each pair of classes: the darker, the more of the true class are taken for it."""
    side = max(3.5, 0.26 * len(classes) + 1.5)
    made = style.figure(side + 0.8, side)
    axes = made.subplots()
    shown = axes.imshow(found, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), [name[:20] for name in classes], rotation=90, fontsize=7)
    axes.set_yticks(range(len(classes)), [name[:20] for name in classes], fontsize=7)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    if len(classes) <= 12:
        for (row, column), share in np.ndenumerate(found):
            if share >= 0.005:
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7,
                          color="white" if share > 0.5 else "black")  # fmt: skip
    accuracy = np.nanmean(np.diag(found))
    axes.set_title(f"mean accuracy of classes {100 * accuracy:.1f} %", loc="left", fontsize=10,
                   fontweight="bold")  # fmt: skip
    made.colorbar(shown, ax=axes, shrink=0.7, label="share of the class")
    return style.save(made, path)
