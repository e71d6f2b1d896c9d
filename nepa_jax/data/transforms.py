"""From decoded pixels to the uint8 pixels of one training or evaluation example."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from nepa_jax.data.augment import POLICIES, random_erase
from nepa_jax.data.decode import DecodeError
from nepa_jax.data.resize import RESIZES

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Transform:
    """What is done to every image. Calling it is a pure function of (pixels, rng).

    image_size: (height, width) of the result.
    augment: a key of AUGMENTS.
    crop_scale: least and greatest share of the image's area, for `random_crop`.
    crop_pct: share of the resized short side that `center_crop` keeps.
    interpolation: a key of INTERPOLATIONS; both are antialiased when they shrink.
    flip: mirror left to right, half of the time.
    decode: a key of RESIZES; `exact` is bit for bit as Pillow's, `fast` nearly.
    policy: a key of POLICIES, applied after the crop and the flip.
    erase_prob: the share of the examples of which a rectangle is erased, last of all.
    """

    image_size: tuple[int, int]
    augment: str = "random_crop"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    flip: bool = True
    decode: str = "exact"
    policy: str = "none"
    erase_prob: float = 0.0

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator, out: np.ndarray) -> None:
        """Writes the result for `pixels`, uint8 [h, w, C], into `out`, uint8 [H, W, C].

        Raises DecodeError if augment is `none` and the image has another size.
        """
        pixels = AUGMENTS[self.augment](self, pixels, rng)
        if self.flip and rng.random() < 0.5:
            pixels = _mirrored(pixels)
        out[:] = POLICIES[self.policy](pixels, rng)
        if self.erase_prob:
            random_erase(out, rng, self.erase_prob)

    def resize(self, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """`pixels` at the size (width, height)."""
        return RESIZES[self.decode](pixels, size, self.interpolation)


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


def _random_crop(config: Transform, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    left, top, w, h = random_resized_crop_box(width, height, rng, config.crop_scale)
    # Crop first: the filter must not see pixels outside of the box.
    return config.resize(pixels[top : top + h, left : left + w], config.image_size[::-1])


def _center_crop(config: Transform, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = config.image_size
    size = pixels.shape[1::-1]
    resized = _covering_size(size, config)
    if resized != size:
        pixels = config.resize(pixels, resized)
    left = round((resized[0] - width) / 2)
    top = round((resized[1] - height) / 2)
    return pixels[top : top + height, left : left + width]


def _covering_size(size: tuple[int, int], config: Transform) -> tuple[int, int]:
    """The (width, height) at which an image of `size` just covers image_size / crop_pct."""
    width, height = size
    least_h, least_w = (int(side / config.crop_pct) for side in config.image_size)
    if width * least_h >= height * least_w:
        return max(least_w, int(least_h * width / height)), least_h
    return least_w, max(least_h, int(least_w * height / width))


def _unchanged(config: Transform, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    found, wanted = pixels.shape[:2], tuple(config.image_size)
    if found != wanted:
        raise DecodeError(f"is {found[0]} x {found[1]} pixels, not {wanted[0]} x {wanted[1]}")
    return pixels


AUGMENTS: dict[str, Callable[[Transform, np.ndarray, np.random.Generator], np.ndarray]] = {
    "random_crop": _random_crop,
    "center_crop": _center_crop,
    "none": _unchanged,
}
