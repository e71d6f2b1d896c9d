"""Augmentations for supervised training, on the host, after the crop and the flip.

RandAugment (arXiv 1909.13719) as timm defines it, 3-Augment as in DeiT III (2204.07118), colour jitter
as torchvision does. Each is a pure function of (image, rng). Random erasing is on the device, in
objectives/erasing.py: its noise does not fit into 8 bits.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from nepa_jax.data.photometric import photometric

Rng = np.random.Generator


class Moved(NamedTuple):
    """How an image is made whose pixels move."""

    fill: tuple[int, ...] | int  # the colour of what comes in from outside
    resample: Image.Resampling


Operation = Callable[[Image.Image, float, Moved], Image.Image]
Augment = Callable[[np.ndarray, Rng, Moved], np.ndarray]  # of uint8 [H, W, C]

NUM_OPERATIONS = 2
MAGNITUDE, MAGNITUDE_STD, MAX_MAGNITUDE = 9.0, 0.5, 10.0


def rand_augment(image: Image.Image, rng: Rng, moved: Moved) -> Image.Image:
    """Two random operations, each with probability 1/2, at a magnitude of about 9 of 10.

    This is timm's `rand-m9-mstd0.5-inc1`: every operation grows in severity with its magnitude. The
    fine-tuning of both MAE and NEPA has it, with the mean colour of the model's normalisation around.
    """
    for _ in range(NUM_OPERATIONS):
        operation = RAND_AUGMENT[_choose(rng, list(RAND_AUGMENT))]
        if rng.random() < 0.5:
            drawn = MAGNITUDE + MAGNITUDE_STD * _normal(rng)
            level = min(max(drawn / MAX_MAGNITUDE, 0.0), 1.0)
            sign = -1 if operation in SIGNED and rng.random() < 0.5 else 1
            image = operation(image, sign * level, moved)
    return image


def three_augment(image: Image.Image, rng: Rng) -> Image.Image:
    """One of solarize, grayscale and Gaussian blur, and then a colour jitter of 0.3."""
    name = _choose(rng, ["solarize", "gray", "blur"])
    if name == "solarize":
        image = ImageOps.solarize(image, 128)
    elif name == "gray":
        image = ImageEnhance.Color(image).enhance(0.0)
    else:
        image = image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * rng.random()))
    return color_jitter(image, rng, 0.3)


def color_jitter(image: Image.Image, rng: Rng, strength: float = 0.4) -> Image.Image:
    """Brightness, contrast and saturation, in random order, times 1 - strength to 1 + strength."""
    operations = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
    for key in np.argsort([rng.random() for _ in operations], kind="stable"):
        factor = max(0.0, 1 + strength * (2 * rng.random() - 1))
        image = operations[key](image).enhance(factor)
    return image


# The operations of RandAugment: functions of (image, level 0 to 1, or -1 to 1 if SIGNED).


def _auto_contrast(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return ImageOps.invert(image)


def _posterize(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    lost = 4 + int(4 * level)  # bits; ImageOps.posterize refuses to lose all 8
    return image.point([value >> lost << lost for value in range(256)] * len(image.getbands()))


def _solarize(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(256 * level))


def _solarize_add(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    values = np.arange(256)
    table = np.where(values < 128, values + int(110 * level), values)
    return image.point(table.tolist() * len(image.getbands()))


def _color(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return ImageEnhance.Color(image).enhance(_factor(level))


def _contrast(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(_factor(level))


def _brightness(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(_factor(level))


def _sharpness(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(_factor(level))


def _factor(level: float) -> float:
    return max(0.1, 1 + 0.9 * level)


def _rotate(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return image.rotate(30 * level, resample=moved.resample, fillcolor=moved.fill)


def _shear_x(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return _affine(image, (1, 0.3 * level, 0, 0, 1, 0), moved)


def _shear_y(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.3 * level, 1, 0), moved)


def _translate_x(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return _affine(image, (1, 0, 0.45 * level * image.width, 0, 1, 0), moved)


def _translate_y(image: Image.Image, level: float, moved: Moved) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, 0.45 * level * image.height), moved)


def _affine(image: Image.Image, matrix: Sequence[float], moved: Moved) -> Image.Image:
    kind = Image.Transform.AFFINE
    return image.transform(image.size, kind, matrix, resample=moved.resample, fillcolor=moved.fill)


RAND_AUGMENT: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
SIGNED = frozenset(list(RAND_AUGMENT.values())[6:])


# Everything is drawn by `random()`: numpy promises its stream across versions, and not that of
# its other distributions.
def _choose(rng: Rng, choices: Sequence[str]) -> str:
    return choices[int(rng.random() * len(choices))]


def _normal(rng: Rng) -> float:
    """A standard normal number from two uniform ones, after Box and Muller."""
    radius = math.sqrt(-2 * math.log1p(-rng.random()))
    return radius * math.cos(2 * math.pi * rng.random())


def _of_pixels(change: Callable[[Image.Image, Rng, Moved], Image.Image]) -> Augment:
    def apply(pixels: np.ndarray, rng: Rng, moved: Moved) -> np.ndarray:
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        return np.asarray(change(image, rng, moved)).reshape(pixels.shape)

    return apply


AUGMENTS: dict[str, Augment] = {
    "none": lambda pixels, rng, moved: pixels,
    "rand_augment": _of_pixels(rand_augment),
    "three_augment": _of_pixels(lambda image, rng, moved: three_augment(image, rng)),
    "color_jitter": _of_pixels(lambda image, rng, moved: color_jitter(image, rng)),
    "photometric": lambda pixels, rng, moved: photometric(pixels, rng),
}
