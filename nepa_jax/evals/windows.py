"""Windows that slide over an image of any size, and their class scores put together again."""

from typing import NamedTuple

import numpy as np

Size = tuple[int, int]  # (height, width), px


class Place(NamedTuple):
    """A window's first row and column."""

    top: int
    left: int


def places_of(size: Size, window: Size, stride: int) -> list[Place]:
    """Windows that cover an image of ``size``, row by row.

    One every ``stride`` px; the last of a row and of a column is moved back to end with the image, as
    mmsegmentation does. The image must be no smaller than a window.
    """
    tops, lefts = (_starts(*sides, stride) for sides in zip(size, window, strict=True))
    return [Place(top, left) for top in tops for left in lefts]


def cut(image: np.ndarray, window: Size, stride: int) -> np.ndarray:
    """[H, W, C] -> its windows [n, height, width, C]."""
    height, width = window
    places = places_of(image.shape[:2], window, stride)
    return np.stack([image[top : top + height, left : left + width] for top, left in places])


def joined(scores: np.ndarray, size: Size, stride: int) -> np.ndarray:
    """The mean over the windows that see a pixel, of class scores and not of probabilities.

    Args:
        scores: of all windows of an image, float32 [n, height, width, K].
        size: of the image.
        stride: px.

    Returns:
        float32 [H, W, K].
    """
    _, height, width, classes = scores.shape
    total = np.zeros((*size, classes), np.float32)
    count = np.zeros((*size, 1), np.float32)
    for each, (top, left) in zip(scores, places_of(size, (height, width), stride), strict=True):
        total[top : top + height, left : left + width] += each
        count[top : top + height, left : left + width] += 1
    return total / count


def _starts(side: int, window: int, stride: int) -> list[int]:
    count = max(0, side - window + stride - 1) // stride + 1
    return [max(0, min(k * stride, side - window)) for k in range(count)]
