"""Augmentations for supervised training, on the host, after the crop and the flip.

RandAugment (arXiv 1909.13719) and random erasing (1708.04896) as timm defines them, 3-Augment as in
DeiT III (2204.07118), colour jitter as torchvision does. Each is a pure function of (image, rng).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Rng = np.random.Generator
Operation = Callable[[Image.Image, float], Image.Image]
Augment = Callable[[np.ndarray, Rng], np.ndarray]  # of uint8 [H, W, C]

NUM_OPERATIONS = 2
MAX_MAGNITUDE = 10.0
IMAGENET_MEAN = np.array([0.485, 0.456, 0.406])
IMAGENET_STD = np.array([0.229, 0.224, 0.225])
FILL = (124, 116, 104)  # the mean colour of ImageNet, for what comes in from outside


def rand_augment(
    image: Image.Image, rng: Rng, magnitude: float = 9.0, magnitude_std: float = 0.5
) -> Image.Image:
    """Two random operations, each with probability 1/2, at a magnitude of about 9 of 10.

    This is timm's `rand-m9-mstd0.5-inc1`: every operation grows in severity with its magnitude.
    """
    for _ in range(NUM_OPERATIONS):
        operation = RAND_AUGMENT[_choose(rng, list(RAND_AUGMENT))]
        if rng.random() < 0.5:
            drawn = magnitude + magnitude_std * float(_normal(rng, ()))
            level = min(max(drawn / MAX_MAGNITUDE, 0.0), 1.0)
            sign = -1 if operation in SIGNED and rng.random() < 0.5 else 1
            image = operation(image, sign * level)
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


def random_erase(pixels: np.ndarray, rng: Rng, probability: float) -> None:
    """Fills, with this probability, a random rectangle of uint8 [H, W, C] with noise, in place.

    The rectangle has 2 % to a third of the area and an aspect ratio of 0.3 to 1/0.3. The noise is
    normal, per pixel, with ImageNet's mean and deviation, cut off at black and white.
    """
    if rng.random() >= probability:
        return
    left, top, width, height = erase_box(pixels.shape[1], pixels.shape[0], rng)
    channels = pixels.shape[2]
    noise = _normal(rng, (height, width, channels))
    noise = 255 * (IMAGENET_MEAN[:channels] + IMAGENET_STD[:channels] * noise)
    pixels[top : top + height, left : left + width] = np.clip(np.rint(noise), 0, 255)


def erase_box(width: int, height: int, rng: Rng) -> tuple[int, int, int, int]:
    """A random box (left, top, width, height) strictly smaller than the image; empty if ten tries
    at one do not fit."""
    for _ in range(10):
        area = width * height * (0.02 + (1 / 3 - 0.02) * rng.random())
        aspect = math.exp(math.log(0.3) * (1 - 2 * rng.random()))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w < width and h < height:
            top = int(rng.random() * (height - h + 1))
            return int(rng.random() * (width - w + 1)), top, w, h
    return 0, 0, 0, 0


# The operations of RandAugment: functions of (image, level 0 to 1, or -1 to 1 if SIGNED).


def _auto_contrast(image: Image.Image, level: float) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, level: float) -> Image.Image:
    return ImageOps.equalize(image)


def _invert(image: Image.Image, level: float) -> Image.Image:
    return ImageOps.invert(image)


def _posterize(image: Image.Image, level: float) -> Image.Image:
    lost = 4 + int(4 * level)  # bits; ImageOps.posterize refuses to lose all 8
    return image.point([value >> lost << lost for value in range(256)] * len(image.getbands()))


def _solarize(image: Image.Image, level: float) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(256 * level))


def _solarize_add(image: Image.Image, level: float) -> Image.Image:
    values = np.arange(256)
    table = np.where(values < 128, values + int(110 * level), values)
    return image.point(table.tolist() * len(image.getbands()))


def _color(image: Image.Image, level: float) -> Image.Image:
    return ImageEnhance.Color(image).enhance(_factor(level))


def _contrast(image: Image.Image, level: float) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(_factor(level))


def _brightness(image: Image.Image, level: float) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(_factor(level))


def _sharpness(image: Image.Image, level: float) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(_factor(level))


def _factor(level: float) -> float:
    return max(0.1, 1 + 0.9 * level)


def _rotate(image: Image.Image, level: float) -> Image.Image:
    return image.rotate(30 * level, resample=Image.Resampling.BICUBIC, fillcolor=_fill(image))


def _shear_x(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, (1, 0.3 * level, 0, 0, 1, 0))


def _shear_y(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, (1, 0, 0, 0.3 * level, 1, 0))


def _translate_x(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, (1, 0, 0.45 * level * image.width, 0, 1, 0))


def _translate_y(image: Image.Image, level: float) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, 0.45 * level * image.height))


def _affine(image: Image.Image, matrix: Sequence[float]) -> Image.Image:
    kind, resample = Image.Transform.AFFINE, Image.Resampling.BICUBIC
    return image.transform(image.size, kind, matrix, resample=resample, fillcolor=_fill(image))


def _fill(image: Image.Image) -> tuple[int, ...] | int:
    return FILL if image.mode == "RGB" else sum(FILL) // len(FILL)


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


def _normal(rng: Rng, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers from uniform ones, after Box and Muller."""
    radius = np.sqrt(-2 * np.log1p(-rng.random(shape)))
    return radius * np.cos(2 * math.pi * rng.random(shape))


def _of_pixels(augment: Callable[[Image.Image, Rng], Image.Image]) -> Augment:
    def apply(pixels: np.ndarray, rng: Rng) -> np.ndarray:
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        return np.asarray(augment(image, rng)).reshape(pixels.shape)

    return apply


AUGMENTS: dict[str, Augment] = {
    "none": lambda pixels, rng: pixels,
    "rand_augment": _of_pixels(rand_augment),
    "three_augment": _of_pixels(three_augment),
    "color_jitter": _of_pixels(color_jitter),
}
