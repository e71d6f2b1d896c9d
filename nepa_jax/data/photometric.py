"""Photometric distortion as semantic segmentation is trained with it (mmsegmentation's
PhotoMetricDistortion, after SSD, arXiv 1512.02325): colours change, and no pixel moves."""

import math

import cv2
import numpy as np

BRIGHTNESS = 32  # added, at most
CONTRAST = SATURATION = (0.5, 1.5)
HUE = 18  # of 180, added

Rng = np.random.Generator


def photometric(pixels: np.ndarray, rng: Rng) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each with probability 1/2; uint8 [H, W, C] to the same.

    Contrast comes second or last, as often. Each rounds down to 8 bits by itself. A gray image has
    neither saturation nor hue, and draws them all the same.
    """
    brightness = _maybe(rng, -BRIGHTNESS, BRIGHTNESS)
    first = rng.random() < 0.5
    contrast, saturation = _maybe(rng, *CONTRAST), _maybe(rng, *SATURATION)
    hue = _maybe(rng, -HUE, HUE)
    if brightness is not None:
        pixels = _scaled(pixels, summand=brightness)
    if contrast is not None and first:
        pixels = _scaled(pixels, contrast)
    if saturation is not None and pixels.shape[2] == 3:
        pixels = _saturated(pixels, saturation)
    if hue is not None and pixels.shape[2] == 3:
        pixels = _turned(pixels, math.floor(hue))
    if contrast is not None and not first:
        pixels = _scaled(pixels, contrast)
    return pixels


def _maybe(rng: Rng, low: float, high: float) -> float | None:
    """Two draws: whether, and how much."""
    happens, share = rng.random() < 0.5, rng.random()
    return low + (high - low) * share if happens else None


def _scaled(values: np.ndarray, factor: float = 1.0, summand: float = 0.0) -> np.ndarray:
    """Each value times a factor and plus a summand, cut off at 0 and 255, rounded down."""
    table = np.arange(256, dtype=np.float32) * factor + summand
    return cv2.LUT(values, np.clip(table, 0, 255).astype(np.uint8)).reshape(values.shape)


def _saturated(pixels: np.ndarray, factor: float) -> np.ndarray:
    hue, saturation, value = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    hsv = cv2.merge([hue, _scaled(saturation, factor), value])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _turned(pixels: np.ndarray, degrees: int) -> np.ndarray:
    """The hue turned by so many of 180."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + degrees) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
