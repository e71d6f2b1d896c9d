"""From decoded pixels to the uint8 pixels of one training or evaluation example."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import cv2
import numpy as np

from nepa_jax.data.augment import AUGMENTS, Moved
from nepa_jax.data.decode import DecodeError
from nepa_jax.data.masks import IGNORED
from nepa_jax.data.resize import FILTERS, NEAREST, RESIZES
from nepa_jax.data.settings import LoaderConfig

Box = tuple[int, int, int, int]
RATIO = (3 / 4, 4 / 3)  # of the sides of a random box

JITTER = (0.5, 2.0)  # of "scale_jitter": the size, to that which just covers the crop
WINDOWS = 11  # that are drawn for a mask; the last is taken as it is
GRAY = 128  # around an image that is smaller than its crop; masks have IGNORED there


Sight = tuple[slice, slice]  # what of a side is seen, and where
Crop = Callable[[LoaderConfig, np.ndarray, np.random.Generator], np.ndarray]


def transform(
    config: LoaderConfig,
    pixels: np.ndarray,
    rng: np.random.Generator,
    out: np.ndarray,
    window: int = 0,
) -> int:
    """Writes what is made of `pixels`, uint8 [h, w, C], into `out`, uint8 [H, W, C].

    A pure function of the rest: the crop, the flip, the augmentation. Where the crop only resizes,
    `window` says which of the windows drawn is seen. A mask (:func:`of_masks`) tells that of its image
    by what it returns: the first in which no class has more than config.max_class_share.

    Raises DecodeError if config.crop is `none` and the image has another size.
    """
    pixels = CROPS[config.crop](config, pixels, rng)
    if config.crop == "scale_jitter":
        views = list(_windows(config, pixels, rng))
        if config.interpolation == NEAREST:
            window = _first_varied(views, config.max_class_share)
        pixels = views[window]()
    if config.flip and rng.random() < 0.5:
        pixels = _mirrored(pixels)
    out[:] = AUGMENTS[config.augment](pixels, rng, moved(config))
    return window


def moved(config: LoaderConfig) -> Moved:
    """How augmentations move pixels: as timm, by the crop's interpolation and over the mean colour."""
    fill = [min(max(round(255 * mean), 0), 255) for mean in config.pixel_mean]
    fill *= config.channels if len(fill) == 1 else 1
    gray = round(sum(fill) / len(fill))
    return Moved(tuple(fill) if config.channels == 3 else gray, FILTERS[config.interpolation])


def of_masks(config: LoaderConfig) -> LoaderConfig:
    """What makes of a mask, uint8 [h, w, 1], what `config` makes of its image, given the same
    random stream: the same crop and flip, to the nearest pixel, and nothing else."""
    plain = dict(channels=1, resize="exact", augment="none")
    return replace(config, interpolation=NEAREST, **plain)


def _resized(config: LoaderConfig, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`pixels` at the size (width, height)."""
    return RESIZES[config.resize](pixels, size, config.interpolation)


def _mirrored(pixels: np.ndarray) -> np.ndarray:
    """Left to right. OpenCV does it 20 times as fast as a copy of pixels[:, ::-1]."""
    return cv2.flip(pixels, 1).reshape(pixels.shape)


def random_resized_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float] = RATIO,
) -> Box:
    """A random box (left, top, width, height) inside the image, as torchvision draws it.

    Ten tries at a box of a random share of the area and a log-uniform aspect ratio; if none
    fits, the largest centred box whose aspect ratio is within bounds.
    """
    for _ in range(10):
        w, h = _random_sides(width, height, rng, scale, ratio)
        if 0 < w <= width and 0 < h <= height:
            top = _below(rng, height - h + 1)
            return _below(rng, width - w + 1), top, w, h
    return _clipped_center_box(width, height, ratio)


def clipped_crop_box(
    width: int, height: int, rng: np.random.Generator, scale: tuple[float, float]
) -> Box:
    """A random box of the first try: what does not fit is clipped to the image.

    The rule of TensorFlow's models that MAE's linear probing follows (released util/crop.py).
    """
    w, h = _random_sides(width, height, rng, scale, RATIO)
    w, h = min(max(w, 1), width), min(max(h, 1), height)
    top = _below(rng, height - h + 1)
    return _below(rng, width - w + 1), top, w, h


def _random_sides(
    width: int, height: int, rng: np.random.Generator,
    scale: tuple[float, float], ratio: tuple[float, float],
) -> tuple[int, int]:  # fmt: skip
    """Width and height of a random share of the area and a log-uniform aspect ratio."""
    area = width * height * _uniform(rng, *scale)
    aspect = math.exp(_uniform(rng, math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def _clipped_center_box(width: int, height: int, ratio: tuple[float, float]) -> Box:
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = min(width, round(height * ratio[1]))
    return (width - w) // 2, (height - h) // 2, w, h


# Everything is drawn by `random()`: numpy promises its stream across versions, and not that of
# its other distributions.
def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _below(rng: np.random.Generator, stop: int) -> int:
    return int(rng.random() * stop)


def _random_crop(config: LoaderConfig, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    left, top, w, h = random_resized_crop_box(width, height, rng, config.crop_scale)
    # Crop first: the filter must not see pixels outside of the box.
    return _resized(config, pixels[top : top + h, left : left + w], config.image_size[::-1])


def _random_clipped_crop(
    config: LoaderConfig, pixels: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    height, width = pixels.shape[:2]
    left, top, w, h = clipped_crop_box(width, height, rng, config.crop_scale)
    return _resized(config, pixels[top : top + h, left : left + w], config.image_size[::-1])


def _center_crop(config: LoaderConfig, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = config.image_size
    size = pixels.shape[1::-1]
    resized = _covering_size(size, config)
    if resized != size:
        pixels = _resized(config, pixels, resized)
    left = round((resized[0] - width) / 2)
    top = round((resized[1] - height) / 2)
    return pixels[top : top + height, left : left + width]


def _covering_size(size: tuple[int, int], config: LoaderConfig) -> tuple[int, int]:
    """The (width, height) at which an image of `size` just covers image_size / crop_pct."""
    width, height = size
    least_h, least_w = (int(side / config.crop_pct) for side in config.image_size)
    if width * least_h >= height * least_w:
        return max(least_w, int(least_h * width / height)), least_h
    return least_w, max(least_h, int(least_w * height / width))


def _scale_jitter(config: LoaderConfig, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image at a random size, of which a window is to be seen."""
    size = config.image_size
    cover = max(want / have for want, have in zip(size, pixels.shape[:2], strict=True))
    scale = cover * _uniform(rng, *JITTER)
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    return _resized(config, pixels, (width, height))


def _windows(
    config: LoaderConfig, pixels: np.ndarray, rng: np.random.Generator
) -> Iterator[Callable[[], np.ndarray]]:
    """Random windows of an image, or of a small one the whole, anywhere in it: to be looked through."""
    sizes = list(zip(pixels.shape[:2], config.image_size, strict=True))
    for _ in range(WINDOWS if config.max_class_share < 1 else 1):
        rows, columns = (_overlap(have, want, rng) for have, want in sizes)
        yield partial(_window, config, pixels, rows, columns)


def _window(config: LoaderConfig, pixels: np.ndarray, rows: Sight, columns: Sight) -> np.ndarray:
    fill = IGNORED if config.interpolation == NEAREST else GRAY
    out = np.full((*config.image_size, pixels.shape[2]), fill, np.uint8)
    out[rows[1], columns[1]] = pixels[rows[0], columns[0]]
    return out


def _first_varied(views: Sequence[Callable[[], np.ndarray]], share: float) -> int:
    """The first window in which no class has so large a share of the pixels with one, or the last.

    As mmsegmentation draws them: one class alone is too much too.
    """
    for number, view in enumerate(views[:-1]):
        counts = np.bincount(view().ravel(), minlength=256)[:IGNORED]
        if np.count_nonzero(counts) > 1 and counts.max() < share * counts.sum():
            return number
    return len(views) - 1


def _overlap(have: int, want: int, rng: np.random.Generator) -> Sight:
    """Which part of a side of `have` pixels is seen in one of `want`, and where it is there."""
    start, length = _below(rng, abs(have - want) + 1), min(have, want)
    inner, whole = slice(start, start + length), slice(0, length)
    return (inner, whole) if have > want else (whole, inner)


def _whole(config: LoaderConfig, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All of the image, whatever its shape was."""
    return _resized(config, pixels, config.image_size[::-1])


def _unchanged(config: LoaderConfig, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    found, wanted = pixels.shape[:2], tuple(config.image_size)
    if found != wanted:
        raise DecodeError(f"is {found[0]} x {found[1]} pixels, not {wanted[0]} x {wanted[1]}")
    return pixels


CROPS: dict[str, Crop] = {
    "random": _random_crop,
    "random_clipped": _random_clipped_crop,
    "center": _center_crop,
    "none": _unchanged,
    "scale_jitter": _scale_jitter,
    "whole": _whole,
}
RANDOM_CROPS = ("random", "random_clipped", "scale_jitter")
