"""From a decoded image to the uint8 pixels of one training or evaluation example."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from nepa_jax.data.decode import DecodeError

Box = tuple[int, int, int, int]

INTERPOLATIONS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


@dataclass(frozen=True)
class Transform:
    """What is done to every image. Calling it is a pure function of (image, rng).

    image_size: (height, width) of the result.
    augment: a key of AUGMENTS.
    crop_scale: least and greatest share of the image's area, for `random_crop`.
    crop_pct: share of the resized short side that `center_crop` keeps.
    interpolation: a key of INTERPOLATIONS; both are antialiased when they shrink.
    flip: mirror left to right, half of the time.
    """

    image_size: tuple[int, int]
    augment: str = "random_crop"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    flip: bool = True

    def __call__(self, image: Image.Image, rng: np.random.Generator, out: np.ndarray) -> None:
        """Writes the result for `image` into `out`, uint8 [H, W, C] with C as in the image.

        Raises DecodeError if augment is `none` and the image has another size.
        """
        image = AUGMENTS[self.augment](self, image, rng)
        pixels = np.asarray(image).reshape(out.shape)
        mirrored = self.flip and rng.random() < 0.5
        out[:] = pixels[:, ::-1] if mirrored else pixels


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


def _random_crop(config: Transform, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    left, top, w, h = random_resized_crop_box(*image.size, rng, config.crop_scale)
    height, width = config.image_size
    # Crop first: `resize(box=...)` would let the filter read pixels outside of the box.
    crop = image.crop((left, top, left + w, top + h))
    return crop.resize((width, height), INTERPOLATIONS[config.interpolation])


def _center_crop(config: Transform, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    height, width = config.image_size
    resized = _covering_size(image.size, config)
    if resized != image.size:
        image = image.resize(resized, INTERPOLATIONS[config.interpolation])
    left = round((resized[0] - width) / 2)
    top = round((resized[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _covering_size(size: tuple[int, int], config: Transform) -> tuple[int, int]:
    """The (width, height) at which an image of `size` just covers image_size / crop_pct."""
    width, height = size
    least_h, least_w = (int(side / config.crop_pct) for side in config.image_size)
    if width * least_h >= height * least_w:
        return max(least_w, int(least_h * width / height)), least_h
    return least_w, max(least_h, int(least_w * height / width))


def _unchanged(config: Transform, image: Image.Image, rng: np.random.Generator) -> Image.Image:
    height, width = config.image_size
    if image.size != (width, height):
        raise DecodeError(f"is {image.height} x {image.width} pixels, not {height} x {width}")
    return image


AUGMENTS: dict[str, Callable[[Transform, Image.Image, np.random.Generator], Image.Image]] = {
    "random_crop": _random_crop,
    "center_crop": _center_crop,
    "none": _unchanged,
}
