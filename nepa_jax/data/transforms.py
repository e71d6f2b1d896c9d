"""From decoded pixels to the uint8 pixels of one training or evaluation example."""

import math
from collections.abc import Callable

import cv2
import numpy as np

from nepa_jax.data.augment import AUGMENTS, random_erase
from nepa_jax.data.decode import DecodeError
from nepa_jax.data.resize import RESIZES
from nepa_jax.data.settings import LoaderConfig

Box = tuple[int, int, int, int]


Crop = Callable[[LoaderConfig, np.ndarray, np.random.Generator], np.ndarray]


def transform(
    config: LoaderConfig, pixels: np.ndarray, rng: np.random.Generator, out: np.ndarray
) -> None:
    """Writes what is made of `pixels`, uint8 [h, w, C], into `out`, uint8 [H, W, C].

    A pure function of config, pixels and rng: the crop, the flip, the augmentation, the erasing.
    Raises DecodeError if config.crop is `none` and the image has another size.
    """
    pixels = CROPS[config.crop](config, pixels, rng)
    if config.flip and rng.random() < 0.5:
        pixels = _mirrored(pixels)
    out[:] = AUGMENTS[config.augment](pixels, rng)
    if config.erase_prob:
        random_erase(out, rng, config.erase_prob)


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
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A random box (left, top, width, height) inside the image, as torchvision draws it.

    Ten tries at a box of a random share of the area and a log-uniform aspect ratio; if none
    fits, the largest centred box whose aspect ratio is within bounds.
    """
    for _ in range(10):
        area = width * height * _uniform(rng, *scale)
        aspect = math.exp(_uniform(rng, math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = _below(rng, height - h + 1)
            return _below(rng, width - w + 1), top, w, h
    return _clipped_center_box(width, height, ratio)


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


def _unchanged(config: LoaderConfig, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    found, wanted = pixels.shape[:2], tuple(config.image_size)
    if found != wanted:
        raise DecodeError(f"is {found[0]} x {found[1]} pixels, not {wanted[0]} x {wanted[1]}")
    return pixels


CROPS: dict[str, Crop] = {"random": _random_crop, "center": _center_crop, "none": _unchanged}
