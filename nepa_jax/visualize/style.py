"""How all pictures look, and the few things that they share."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
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
NOTHING = np.uint8(225)  # the gray of a place without a value
DPI = 200


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


def rgb(pixels: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] of one or three channels -> uint8 [H, W, 3]."""
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def coloured(values: np.ndarray, colors: ScalarMappable, patch_size: int) -> np.ndarray:
    """A value per patch [rows, columns] -> uint8 [H, W, 3], ``patch_size`` px each; NaN: light gray."""
    found = colors.to_rgba(np.ma.masked_invalid(values), bytes=True)[..., :3]
    return enlarged(np.where(np.isnan(values)[..., None], NOTHING, found), patch_size)


def enlarged(values: np.ndarray, factor: int) -> np.ndarray:
    """Every entry of the first two axes as a square of that side."""
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def save(made: Figure, path: str | Path) -> Path:
    """Writes a PNG, or a PDF with its text as text, by the suffix; folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"pdf.fonttype": 42}):
        made.savefig(path, dpi=DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1)
    return path
