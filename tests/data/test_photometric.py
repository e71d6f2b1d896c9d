"""Colours of segmentation's images, against what mmsegmentation does by its own steps."""

import cv2
import numpy as np
import pytest
from PIL import Image

from nepa_jax.data.photometric import photometric


class Fixed:
    """A random generator that gives these numbers, one after the other."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self):
        return self.numbers.pop(0)


@pytest.fixture
def pixels(picture):
    noise = np.random.default_rng(0).integers(-40, 41, (40, 48, 3))
    return np.clip(np.asarray(picture(0, 48, 40), int) + noise, 0, 255).astype(np.uint8)


def convert(values, alpha=1.0, beta=0.0):
    return np.clip(values.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def by_steps(pixels, brightness, first, contrast, saturation, hue):
    """The released steps, on BGR as there."""
    image = np.ascontiguousarray(pixels[..., ::-1])
    if brightness is not None:
        image = convert(image, beta=brightness)
    if first and contrast is not None:
        image = convert(image, alpha=contrast)
    if saturation is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 1] = convert(hsv[:, :, 1], alpha=saturation)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if hue is not None:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[:, :, 0] = (hsv[:, :, 0].astype(int) + hue) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not first and contrast is not None:
        image = convert(image, alpha=contrast)
    return image[..., ::-1]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("on", range(16))
def test_each_step_is_mmsegmentations(pixels, on, first):
    """Every choice of the four, contrast before and after."""
    values = (-25.6, 1.4, 0.7, -9)
    shares = (0.1, 0.9, 0.2, 0.25)  # of their ranges
    happens = [bool(on >> bit & 1) for bit in range(4)]
    draws = [(0.1 if yes else 0.9, share) for yes, share in zip(happens, shares, strict=True)]
    draws = [*draws[0], 0.2 if first else 0.8, *draws[1], *draws[2], *draws[3]]
    found = photometric(pixels, Fixed(*draws))
    brightness, contrast, saturation, hue = (
        value if yes else None for yes, value in zip(happens, values, strict=True)
    )
    wanted = by_steps(pixels, brightness, first, contrast, saturation, hue)
    np.testing.assert_array_equal(found, wanted)
    assert bool(on) == bool(np.any(found != pixels))


def test_amounts_and_how_often(pixels):
    gray = np.full((4, 4, 1), 100, np.uint8)
    values = np.array(
        [photometric(gray, np.random.default_rng(seed))[0, 0, 0] for seed in range(2000)]
    )
    assert 0.21 < np.mean(values == 100) < 0.29  # neither brightness nor contrast
    assert values.min() >= (100 - 32) // 2 - 1 and values.max() <= (100 + 32) * 1.5 + 1
    assert values.min() < 45 and values.max() > 180


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (40, 48)])
def test_any_image_keeps_its_shape_and_what_it_was(mode, size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode)
    pixels = np.asarray(image).reshape(*size, -1)
    before = pixels.copy()
    for seed in range(30):
        found = photometric(pixels, np.random.default_rng(seed))
        assert found.shape == pixels.shape and found.dtype == np.uint8
        np.testing.assert_array_equal(pixels, before)
        np.testing.assert_array_equal(found, photometric(pixels, np.random.default_rng(seed)))
