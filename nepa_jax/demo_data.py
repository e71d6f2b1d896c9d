"""Cluttered, translated digits: a small real data set that needs no download.

The protocol of Mnih et al. 2014 (arXiv 1406.6247, section 4.1, "cluttered translated MNIST"): a
digit at a random place of a larger canvas, with fragments of other digits around it. The digits are
scikit-learn's 1,797 handwritten ones (8 x 8 px; UCI "optical recognition of handwritten digits").
"""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from nepa_jax.errors import UserError

CANVAS = 32  # px
# Twice the scan's 8 px: a stroke is then about 4 px wide and a digit covers 4 x 4 patches of 4 px,
# enough for a patch model to compose; and a quarter of the canvas, so that the place of the digit
# decides far more pixels than its class, which is what defeats raw pixels.
DIGIT = 16  # px
FRAGMENT = 6  # px; the share of the digit's side as in the paper (8 of 28), rounded up
NUM_FRAGMENTS = 4
CLASSES = tuple("0123456789")

# How many source digits each split draws from. No digit, whole or in fragments, is in two splits.
SOURCES = {"train": 1097, "validation": 200, "test": 500}


def cluttered_digits(split: str, num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws canvases from the source digits of one split.

    Args:
        split: a key of SOURCES.
        num_images: any number; a source digit comes back at other places with other fragments.
        seed: the same seed gives the same images.

    Returns:
        Images uint8 [n, 32, 32, 3] (gray, white strokes on black) and labels int32 [n].

    Raises:
        UserError: there is no such split.
    """
    digits, labels = source_digits(split)
    rng = np.random.default_rng([seed, list(SOURCES).index(split)])
    chosen = np.arange(num_images) % len(digits)  # every digit equally often
    canvases = np.stack([draw_canvas(digits, index, rng) for index in chosen])
    return np.repeat(canvases[..., None], 3, axis=3), labels[chosen]


def source_digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The enlarged digits uint8 [n, 16, 16] and labels int32 [n] that belong to a split."""
    from sklearn.datasets import load_digits

    if split not in SOURCES:
        raise UserError(f"split {split!r} does not exist; choose from {', '.join(SOURCES)}")
    source = load_digits()
    order = np.random.default_rng(0).permutation(len(source.images))
    start = sum(SOURCES[earlier] for earlier in list(SOURCES)[: list(SOURCES).index(split)])
    members = order[start : start + SOURCES[split]]
    digits = np.stack([enlarge(image) for image in source.images[members]])
    return digits, source.target[members].astype(np.int32)


def enlarge(image: np.ndarray) -> np.ndarray:
    """A scan with values 0 … 16 [8, 8] -> uint8 [16, 16], bilinear."""
    scan = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    return np.asarray(scan.resize((DIGIT, DIGIT), Image.Resampling.BILINEAR))


def draw_canvas(digits: np.ndarray, index: int, rng: np.random.Generator) -> np.ndarray:
    """One digit and fragments of others, uint8 [32, 32]; where they overlap the brighter stays."""
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    paste(canvas, digits[index], rng)
    for _ in range(NUM_FRAGMENTS):
        other = (index + 1 + below(rng, len(digits) - 1)) % len(digits)
        top, left = below(rng, DIGIT - FRAGMENT + 1), below(rng, DIGIT - FRAGMENT + 1)
        paste(canvas, digits[other, top : top + FRAGMENT, left : left + FRAGMENT], rng)
    return canvas


def paste(canvas: np.ndarray, piece: np.ndarray, rng: np.random.Generator) -> None:
    """Puts a square piece at a random place, all of it inside the canvas."""
    side = len(piece)
    top, left = below(rng, CANVAS - side + 1), below(rng, CANVAS - side + 1)
    window = canvas[top : top + side, left : left + side]
    np.maximum(window, piece, out=window)


def below(rng: np.random.Generator, stop: int) -> int:
    """A whole number in [0, stop); of `random()` alone numpy promises the stream over versions."""
    return int(rng.random() * stop)


def png_records(
    images: np.ndarray, labels: np.ndarray, split: str
) -> Iterator[tuple[bytes, int, str]]:
    """Encodes images uint8 [n, H, W, 3] losslessly: (PNG bytes, label, name) of each."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="png", compress_level=1)
        yield buffer.getvalue(), int(label), f"{split}/{CLASSES[label]}/{index:06d}.png"
