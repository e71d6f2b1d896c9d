"""Windows that slide over an image of any size, and their class scores put together again."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """Its first row and column, px."""

    top: int
    left: int


def windows_of(size: tuple[int, int], window: tuple[int, int], stride: int) -> list[Window]:
    """Windows (height, width) that cover an image of ``size``, row by row.

    One every ``stride`` px; the last of a row and of a column is moved back to end with the image, as
    mmsegmentation does. The image must be no smaller than a window.
    """
    tops, lefts = (_starts(*sides, stride) for sides in zip(size, window, strict=True))
    return [Window(top, left) for top in tops for left in lefts]


def slide(
    image: np.ndarray,
    window: tuple[int, int],
    stride: int,
    scores_of: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Class scores of an image: the mean over the windows that see a pixel, of scores and not of
    probabilities.

    Args:
        image: [H, W, C].
        window: (height, width), px.
        stride: px.
        scores_of: windows [n, height, width, C] -> scores float32 [..., n, height, width, K].

    Returns:
        float32 [..., H, W, K].
    """
    places = windows_of(image.shape[:2], window, stride)
    height, width = window
    cut = np.stack([image[top : top + height, left : left + width] for top, left in places])
    scores = scores_of(cut)
    *front, _, _, _, classes = scores.shape
    total = np.zeros((*front, *image.shape[:2], classes), np.float32)
    count = np.zeros((*image.shape[:2], 1), np.float32)
    for number, (top, left) in enumerate(places):
        total[..., top : top + height, left : left + width, :] += scores[..., number, :, :, :]
        count[top : top + height, left : left + width] += 1
    return total / count


def _starts(side: int, window: int, stride: int) -> list[int]:
    count = max(0, side - window + stride - 1) // stride + 1
    return [max(0, min(k * stride, side - window)) for k in range(count)]
