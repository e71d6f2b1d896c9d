"""Images in labelled rows and columns: how every picture of images is laid out."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, zip_longest
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nepa_jax.visualize import style

GAP = 0.06  # between images, as a share of their longer side
LINE = 0.15  # inches, of a line of a caption
LETTERS = 13.5  # of a heading, to the inch
FRAME = "#FF2DD1"  # is in no colour map here, and stands out on photographs


class Frame(NamedTuple):
    """Around one patch of the image in a cell."""

    row: int
    column: int
    patch: tuple[int, int]  # row and column of its grid
    side: int  # px


@dataclass(frozen=True)
class Sheet:
    """What stands where: a row is as high as its highest image, a column as wide as its widest."""

    rows: Sequence[Sequence[np.ndarray | None]]  # uint8 [h, w, 3]; None: nothing
    row_labels: Sequence[str]
    column_labels: Sequence[str] = ()
    captions: Sequence[Sequence[str]] = ()  # one below each image, of one line or more
    frames: Sequence[Frame] = ()
    side: float = 1.1  # of the longest side of an image, inches

    @cached_property
    def heights(self) -> list[int]:
        """Of the rows, px."""
        return [max(_size(image)[0] for image in row) for row in self.rows]

    @cached_property
    def widths(self) -> list[int]:
        """Of the columns, px."""
        return [max(_size(image)[1] for image in column) for column in zip_longest(*self.rows)]

    @property
    def pixels_per_inch(self) -> float:
        return max(*self.heights, *self.widths) / self.side

    @property
    def gap(self) -> int:
        """Between images, px."""
        return max(1, round(GAP * max(*self.heights, *self.widths)))

    @cached_property
    def tops(self) -> list[int]:
        """Of the rows, px; at the end where the next one would begin."""
        lines = max(
            (text.count("\n") + 1 for row in self.captions for text in row if text), default=0
        )
        apart = self.gap + round(LINE * self.pixels_per_inch * lines)
        return [0, *accumulate(height + apart for height in self.heights)]

    @cached_property
    def lefts(self) -> list[int]:
        """Of the columns, px; at the end where the next one would begin."""
        return [0, *accumulate(width + self.gap for width in self.widths)]

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Top and left of an image, px, in the middle of its cell."""
        height, width = _size(self.rows[row][column])
        return (
            self.tops[row] + (self.heights[row] - height) // 2,
            self.lefts[column] + (self.widths[column] - width) // 2,
        )

    def canvas(self) -> np.ndarray:
        """All images on white: uint8 [H, W, 3]."""
        size = self.tops[-1] - self.gap, self.lefts[-1] - self.gap
        made = np.full((*size, 3), 255, np.uint8)
        for row, images in enumerate(self.rows):
            for column, image in enumerate(images):
                if image is not None:
                    top, left = self.corner(row, column)
                    made[top : top + image.shape[0], left : left + image.shape[1]] = image
        return made


def _size(image: np.ndarray | None) -> tuple[int, int]:
    """Height and width, px."""
    return (0, 0) if image is None else image.shape[:2]


def draw(sheet: Sheet, heading: str) -> tuple[Figure, Axes]:
    """The sheet under a heading, for a colour bar or a legend to be added."""
    canvas = sheet.canvas()
    height, width = (side / sheet.pixels_per_inch for side in canvas.shape[:2])
    made = style.figure(width + 1.6, height + 0.9)
    axes = made.add_subplot()
    axes.imshow(canvas)
    axes.spines[:].set_visible(False)
    _label(axes, sheet)
    for frame in sheet.frames:
        axes.add_patch(_rectangle(sheet, frame))
    made.suptitle(textwrap.fill(heading, max(30, round(LETTERS * (width + 1.2)))), fontsize=9)
    return made, axes


def _label(axes: Axes, sheet: Sheet) -> None:
    """Rows at the left, columns at the top, captions below their images."""
    rows = [top + height / 2 for top, height in zip(sheet.tops, sheet.heights, strict=False)]
    columns = [left + width / 2 for left, width in zip(sheet.lefts, sheet.widths, strict=False)]
    count = len(sheet.column_labels)
    axes.set_yticks(rows, sheet.row_labels, fontsize=8)
    axes.set_xticks(columns[:count], sheet.column_labels, fontsize=7.5)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for row, texts in enumerate(sheet.captions):
        for column, text in enumerate(texts):
            bottom = sheet.corner(row, column)[0] + _size(sheet.rows[row][column])[0]
            axes.text(
                columns[column], bottom, text, fontsize=6.5, ha="center", va="top", linespacing=1.1
            )


def _rectangle(sheet: Sheet, frame: Frame) -> Rectangle:
    top, left = sheet.corner(frame.row, frame.column)
    row, column = frame.patch
    corner = (left + column * frame.side - 0.5, top + row * frame.side - 0.5)
    return Rectangle(corner, frame.side, frame.side, fill=False, edgecolor=FRAME, linewidth=1.2)
