"""How all pictures look, and the few things that they share."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any kind of colour vision, and in print.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GRAY = "#777777"
COLORS = {
    "nepa": PALETTE[0],
    "mae": PALETTE[1],
    "untrained": GRAY,
    "untrained_nepa": "#9DBFD6",
    "untrained_mae": "#E3B491",
    "raw_pixels": "#222222",
}
TITLES = {
    "nepa": "NEPA",
    "mae": "MAE",
    "untrained": "untrained",
    "untrained_nepa": "NEPA, untrained",
    "untrained_mae": "MAE, untrained",
    "raw_pixels": "raw pixels",
}
DPI = 150


def color(name: str, index: int = 0) -> str:
    """The fixed colour of a known method, else the palette's."""
    return COLORS.get(name, PALETTE[index % len(PALETTE)])


def title(name: str) -> str:
    """A method's name for readers."""
    return TITLES.get(name, name)


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches, outside of pyplot: no window and no global state."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def plain(axes: Axes, heading: str, xlabel: str, ylabel: str) -> None:
    """Two spines, a faint grid, labels."""
    axes.set_title(heading, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def legend(axes: Axes) -> None:
    """Below the frame, where it covers no curve."""
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=8, frameon=False,
        columnspacing=1.2, handlelength=1.6,
    )  # fmt: skip


def bare(axes: Axes) -> None:
    """Takes away ticks and frame, for images."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def row_label(axes: Axes, text: str) -> None:
    """A horizontal label at the left of an image."""
    axes.set_ylabel(text, rotation=0, ha="right", va="center", labelpad=8, fontsize=9)


def strip(images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Sets images in [0, 1] [n, H, W, 3] side by side with white gaps: [H, W', 3]."""
    height, width = images[0].shape[:2]
    gap = np.ones((height, max(1, width // 16), 3))
    pieces = [piece for image in images for piece in (image, gap)]
    return np.concatenate(pieces[:-1], axis=1)


def save(made: Figure, path: str | Path) -> Path:
    """Writes a PNG and returns its path; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.savefig(path, dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    return path
