"""Test images, their masks and what a segmenter made of them, side by side."""

import colorsys
from pathlib import Path

import numpy as np
from matplotlib.patches import Patch

from nepa_jax.visualize import style

EXAMPLES = "examples.npz"  # in a run's `eval` folder
UNKNOWN = (0.93, 0.93, 0.93)  # pixels without a class
MOST = 24  # classes that the legend names, those with the most pixels first
GOLDEN_ANGLE = 0.61803398875  # of the colour circle: neighbours in number are far apart in hue


def palette(count: int) -> np.ndarray:
    """Colours that differ, float [count, 3]: hues by the golden angle, in five lightnesses."""
    found = [
        colorsys.hls_to_rgb(
            (0.58 + k * GOLDEN_ANGLE) % 1, (0.5, 0.68, 0.34, 0.6, 0.42)[k % 5], 0.65
        )
        for k in range(count)
    ]
    return np.array(found)


def coloured(classes: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """[h, w] of classes, those beyond the last without one -> float [h, w, 3]."""
    return np.concatenate([colors, [UNKNOWN]])[np.minimum(classes, len(colors))]


def draw(examples: Path, path: Path) -> Path:
    """Draws what a run kept of its last test (``image0``, ``mask0``, ``prediction0``, …, ``classes``)."""
    with np.load(examples) as arrays:
        found = dict(arrays)
    names = found["classes"]
    count = sum(key.startswith("image") for key in found)
    colors = palette(len(names))
    height, width = found["image0"].shape[:2]
    made = style.figure(3 * 2.6 + 1.6, max(2.0, count * 2.6 * height / width + 0.5))
    axes = made.subplots(count, 3, squeeze=False)
    for row, cells in enumerate(axes):
        image, mask, prediction = (
            found[f"{kind}{row}"] for kind in ("image", "mask", "prediction")
        )
        pictures = style.rgb(image), coloured(mask, colors), coloured(prediction, colors)
        for cell, picture in zip(cells, pictures, strict=True):
            cell.imshow(picture, interpolation="nearest")
            cell.set_axis_off()
    for cell, title in zip(axes[0], ("image", "labels", "predicted"), strict=True):
        cell.set_title(title, loc="left", fontsize=10, fontweight="bold")
    made.legend(
        handles=_handles(found, count, colors), loc="outside right upper", fontsize=7, frameon=False
    )
    return style.save(made, path)


def _handles(found: dict[str, np.ndarray], count: int, colors: np.ndarray) -> list[Patch]:
    """A colour and a name for each class that is seen, and for what has none."""
    names = found["classes"]
    seen = np.zeros(256, np.int64)
    for row in range(count):
        for kind in ("mask", "prediction"):
            seen += np.bincount(found[f"{kind}{row}"].ravel(), minlength=256)
    order = [k for k in np.argsort(-seen[: len(names)], kind="stable") if seen[k]]
    shown = [Patch(color=colors[k], label=str(names[k])[:24]) for k in sorted(order[:MOST])]
    if len(order) > MOST:
        shown.append(Patch(color="white", label=f"and {len(order) - MOST} more"))
    return [*shown, Patch(color=UNKNOWN, label="no class")]
