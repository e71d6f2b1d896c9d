"""Images in labelled rows and columns: how every picture of images is laid out."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from nepa_jax.visualize import style

GAP = 0.06  # between images, as a share of their longer side
LINE = 0.15  # inches, of a line of a caption
LETTERS = 12.5  # of a heading, to the inch
FRAME = "#FF2DD1"  # is in no colour map here, and stands out on photographs


class Frame(NamedTuple):
    """Around one patch of the image in a cell."""

    row: int
    column: int
    patch: tuple[int, int]  # row and column of its grid
    side: int  # px


@dataclass(frozen=True)
class Sheet:
    """What stands in which cell; all cells are as large as the largest image."""

    rows: Sequence[Sequence[np.ndarray | None]]  # uint8 [h, w, 3]; None: nothing
    row_labels: Sequence[str]
    column_labels: Sequence[str] = ()
    captions: Sequence[Sequence[str]] = ()  # one below each image, of one line or more
    frames: Sequence[Frame] = ()
    side: float = 1.1  # of a cell's longer side, inches

    @property
    def cell(self) -> tuple[int, int]:
        """Height and width of a cell, px."""
        images = [image for row in self.rows for image in row if image is not None]
        return max(each.shape[0] for each in images), max(each.shape[1] for each in images)

    @property
    def pixels_per_inch(self) -> float:
        return max(self.cell) / self.side

    @property
    def below(self) -> int:
        """Room for the captions, px."""
        lines = [text.count("\n") + 1 for row in self.captions for text in row if text]
        return round(LINE * self.pixels_per_inch * max(lines, default=0))

    @property
    def gap(self) -> int:
        """Between images, px."""
        return max(1, round(GAP * max(self.cell)))

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Top and left of an image on the canvas, px; it stands in the middle of its cell."""
        (height, width), image = self.cell, self.rows[row][column]
        found = image.shape if image is not None else (height, width)
        top = row * (height + self.gap + self.below) + (height - found[0]) // 2
        return top, column * (width + self.gap) + (width - found[1]) // 2

    def canvas(self) -> np.ndarray:
        """All images on white: uint8 [H, W, 3]."""
        (height, width), columns = self.cell, max(map(len, self.rows))
        tall = len(self.rows) * (height + self.gap + self.below) - self.gap
        made = np.full((tall, columns * (width + self.gap) - self.gap, 3), 255, np.uint8)
        for row, images in enumerate(self.rows):
            for column, image in enumerate(images):
                if image is not None:
                    top, left = self.corner(row, column)
                    made[top : top + image.shape[0], left : left + image.shape[1]] = image
        return made


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
    height, width = sheet.cell
    rows = [index * (height + sheet.gap + sheet.below) for index in range(len(sheet.rows))]
    columns = [index * (width + sheet.gap) for index in range(len(sheet.column_labels))]
    axes.set_yticks([top + height / 2 for top in rows], sheet.row_labels, fontsize=8)
    axes.set_xticks([left + width / 2 for left in columns], sheet.column_labels, fontsize=7.5)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for top, texts in zip(rows, sheet.captions, strict=False):
        for index, text in enumerate(texts):
            x = index * (width + sheet.gap) + width / 2
            axes.text(x, top + height, text, fontsize=6.5, ha="center", va="top", linespacing=1.1)


def _rectangle(sheet: Sheet, frame: Frame) -> Rectangle:
    top, left = sheet.corner(frame.row, frame.column)
    row, column = frame.patch
    corner = (left + column * frame.side - 0.5, top + row * frame.side - 0.5)
    return Rectangle(corner, frame.side, frame.side, fill=False, edgecolor=FRAME, linewidth=1.2)
