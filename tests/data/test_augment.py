from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nepa_jax.data import augment
from nepa_jax.data.augment import (
    AUGMENTS,
    FILL,
    RAND_AUGMENT,
    SIGNED,
    erase_box,
    random_erase,
)
from nepa_jax.data.settings import LoaderConfig
from nepa_jax.data.transforms import transform

TIMM_NAMES = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "rotate": "Rotate",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}


class Fixed:
    """A random generator that gives these numbers, one after the other."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self, shape=None):
        number = self.numbers.pop(0)
        return number if shape is None else np.full(shape, number)


@pytest.fixture
def image(picture):
    """A picture with noise on it, so that filters and sharpness show."""
    pixels = np.asarray(picture(0, 48, 40), int)
    noise = np.random.default_rng(0).integers(-20, 21, pixels.shape)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize("magnitude", [0.0, 3.7, 8.6, 9.0, 9.4, 9.999])
@pytest.mark.parametrize("name", RAND_AUGMENT)
def test_operations_are_timms(timm, monkeypatch, image, name, magnitude):
    from timm.data import auto_augment

    for sign in (1, -1):
        monkeypatch.setattr(auto_augment.random, "random", lambda sign=sign: 0.5 - 0.1 * sign)
        hparams = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
        theirs = auto_augment.AugmentOp(TIMM_NAMES[name], 1.0, magnitude, hparams)(image)
        operation = RAND_AUGMENT[name]
        level = (sign if operation in SIGNED else 1) * magnitude / 10
        np.testing.assert_array_equal(operation(image, level), theirs)


def test_every_operation_takes_the_greatest_magnitude(image):
    for mode in ("RGB", "L"):
        for operation in RAND_AUGMENT.values():
            assert operation(image.convert(mode), 1.0).size == image.size
    assert np.all(np.asarray(RAND_AUGMENT["posterize"](image, 1.0)) == 0)


def test_the_set_of_operations_is_timms(timm):
    from timm.data import auto_augment

    assert set(TIMM_NAMES.values()) == set(auto_augment._RAND_INCREASING_TRANSFORMS)
    fill = tuple(round(255 * mean) for mean in timm.data.IMAGENET_DEFAULT_MEAN)
    assert fill == FILL


@pytest.mark.parametrize(("choice", "name"), [(0, "Solarize"), (1, "Desaturate")])
def test_three_augment_is_timms(timm, monkeypatch, image, choice, name):
    from timm.data import auto_augment

    monkeypatch.setattr(augment, "color_jitter", lambda image, *_: image)
    policy = auto_augment.auto_augment_policy("3a", {"img_mean": FILL})
    (operation,) = policy[choice]
    assert operation.name == name
    found = augment.three_augment(image, Fixed(choice / 3 + 0.01))
    np.testing.assert_array_equal(found, operation(image))


@pytest.mark.parametrize("draw", [0.0, 0.3, 0.99])
def test_the_blur_of_three_augment_is_timms(timm, monkeypatch, image, draw):
    from timm.data import auto_augment

    monkeypatch.setattr(augment, "color_jitter", lambda image, *_: image)
    monkeypatch.setattr(auto_augment.random, "uniform", lambda a, b: a + (b - a) * draw)
    (operation,) = auto_augment.auto_augment_policy("3a", {"img_mean": FILL})[2]
    found = augment.three_augment(image, Fixed(0.9, draw))
    np.testing.assert_array_equal(found, operation(image))


def test_color_jitter_is_torchvisions(timm, monkeypatch, image):
    import torch
    from torchvision.transforms import ColorJitter

    jitter = ColorJitter(0.4, 0.4, 0.4)
    # Keys 0.9, 0.1, 0.5 sort to contrast, saturation, brightness.
    factors = torch.tensor([1, 2, 0, 3]), 0.9, 1.3, 0.7, None
    monkeypatch.setattr(ColorJitter, "get_params", staticmethod(lambda *_: factors))
    draws = [(factor - 0.6) / 0.8 for factor in (1.3, 0.7, 0.9)]
    found = augment.color_jitter(image, Fixed(0.9, 0.1, 0.5, *draws), 0.4)
    np.testing.assert_array_equal(found, jitter(image))


def test_erased_boxes_are_timms(timm, monkeypatch):
    import torch
    from timm.data import random_erasing

    rng = np.random.default_rng(0)
    draws = []

    def drawn(stop=1.0):
        draws.append(rng.random())
        return draws[-1]

    module = random_erasing.random
    monkeypatch.setattr(module, "random", lambda: 0.0)
    monkeypatch.setattr(module, "uniform", lambda a, b: a + (b - a) * drawn())
    monkeypatch.setattr(module, "randint", lambda a, b: a + int(drawn() * (b - a + 1)))
    erase = random_erasing.RandomErasing(1.0, mode="const", device="cpu")
    for _ in range(50):
        draws.clear()
        erased = erase(torch.ones(1, 40, 64))[0].numpy() == 0
        left, top, width, height = erase_box(64, 40, Fixed(*draws))
        expected = np.zeros((40, 64), bool)
        expected[top : top + height, left : left + width] = True
        np.testing.assert_array_equal(erased, expected)


def test_erasing_happens_as_often_and_as_much_as_asked():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(400):
        pixels = np.full((32, 32, 3), 7, np.uint8)
        random_erase(pixels, rng, 0.25)
        shares.append(np.mean(np.any(pixels != 7, axis=2)))
    shares = np.array(shares)
    assert 0.18 < np.mean(shares > 0) < 0.32
    assert shares[shares > 0].min() > 0.01 and shares.max() < 0.36


def test_erased_pixels_have_imagenets_mean_and_deviation():
    pixels = np.zeros((400, 400, 3), np.uint8)
    random_erase(pixels, np.random.default_rng(1), 1.0)
    noise = pixels[np.any(pixels, axis=2)] / 255
    np.testing.assert_allclose(noise.mean(0), augment.IMAGENET_MEAN, atol=0.02)
    np.testing.assert_allclose(noise.std(0), augment.IMAGENET_STD, atol=0.03)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentations_are_functions_of_the_image_and_the_random_numbers(image, mode, name):
    pixels = np.asarray(image.convert(mode)).reshape(40, 48, -1)
    before = pixels.copy()
    found = [AUGMENTS[name](pixels, np.random.default_rng(seed)) for seed in (0, 0, *range(8))]
    assert all(result.shape == pixels.shape and result.dtype == np.uint8 for result in found)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(pixels, before)
    assert name == "none" or any(np.any(result != pixels) for result in found)


def test_magnitudes_vary_around_nine(monkeypatch, image):
    levels = []
    operations = {name: lambda image, level: (levels.append(level), image)[1] for name in "ab"}
    monkeypatch.setattr(augment, "RAND_AUGMENT", operations)
    for seed in range(500):
        augment.rand_augment(image, np.random.default_rng(seed))
    assert 430 < len(levels) < 570 and max(levels) <= 1
    assert abs(np.mean(levels) - 0.9) < 0.01 and 0.04 < np.std(levels) < 0.055


def test_a_transform_augments_and_erases(picture):
    pixels = np.asarray(picture(1, 32, 32))
    plain = LoaderConfig(image_size=(16, 16))
    for change in ({"augment": "color_jitter"}, {"erase_prob": 1.0}):
        results = []
        for config in (plain, replace(plain, **change)):
            out = np.zeros((16, 16, 3), np.uint8)
            transform(config, pixels, np.random.default_rng(3), out)
            results.append(out)
        assert np.any(results[0] != results[1])
