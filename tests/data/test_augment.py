import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from nepa_jax.data import augment
from nepa_jax.data.augment import AUGMENTS, RAND_AUGMENT, SIGNED, Moved
from nepa_jax.data.loader import Loader, LoaderConfig
from nepa_jax.data.transforms import moved, transform

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden2" / "timm_randaug"
FILL = (124, 116, 104)
MOVED = Moved(FILL, Image.Resampling.BICUBIC)
GRAY = Moved(115, Image.Resampling.BICUBIC)

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


def test_operations_are_those_of_the_golden_arrays():
    """All of `inc1` at three magnitudes, both signs, both interpolations, over the gray of [-1, 1]."""
    config = json.loads(GOLDEN.with_suffix(".json").read_text())["config"]
    arrays = load_file(GOLDEN.with_suffix(".safetensors"))
    ours = {theirs: RAND_AUGMENT[name] for name, theirs in TIMM_NAMES.items()}
    picture = Image.fromarray(arrays["input.image"])
    seen = set()
    for key in config["arguments"]:
        operation, _, rest = key.partition(".m")
        magnitude, _, sign = rest.removesuffix(".bilinear").rpartition(".")
        kind = "bilinear" if key.endswith(".bilinear") else "bicubic"
        settings = LoaderConfig(pixel_mean=(0.5,) * 3, interpolation=kind)
        assert moved(settings).fill == tuple(config["fill colour"])
        level = float(magnitude) / 10 * (-1 if sign == "neg" else 1)
        found = ours[operation](picture, level, moved(settings))
        np.testing.assert_array_equal(found, arrays[f"out.{key}"], err_msg=key)
        seen.add(operation)
    assert seen == set(ours)


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
        np.testing.assert_array_equal(operation(image, level, MOVED), theirs)


def test_every_operation_takes_the_greatest_magnitude(image):
    for mode, how in (("RGB", MOVED), ("L", GRAY)):
        for operation in RAND_AUGMENT.values():
            assert operation(image.convert(mode), 1.0, how).size == image.size
    assert np.all(np.asarray(RAND_AUGMENT["posterize"](image, 1.0, MOVED)) == 0)


def test_what_comes_in_from_outside_has_the_models_mean_colour(image):
    """As timm, which takes it from the normalisation; round(255 · .5) is 128 there too."""
    assert moved(LoaderConfig()) == MOVED
    assert moved(LoaderConfig(interpolation="bilinear")).resample == Image.Resampling.BILINEAR
    assert moved(LoaderConfig(pixel_mean=(0.5,))).fill == (128, 128, 128)
    assert moved(LoaderConfig(channels=1)) == GRAY
    assert moved(LoaderConfig(channels=1, pixel_mean=(0.2,))).fill == 51
    assert moved(LoaderConfig(pixel_mean=(-1.0, 0.0, 2.0))).fill == (0, 0, 255)
    config = LoaderConfig(
        "", image_size=(40, 48), pixel_mean=(1.0, 0.0, 0.0), augment="rand_augment"
    )
    red = 0
    for seed in range(60):
        out = np.zeros((40, 48, 3), np.uint8)
        transform(replace(config, crop="none"), np.asarray(image), np.random.default_rng(seed), out)
        red += np.all(out == (255, 0, 0), axis=2).mean() > 0.05
    assert red > 5


def test_the_set_of_operations_is_timms(timm):
    from timm.data import auto_augment

    assert set(TIMM_NAMES.values()) == set(auto_augment._RAND_INCREASING_TRANSFORMS)
    fill = tuple(round(255 * mean) for mean in timm.data.IMAGENET_DEFAULT_MEAN)
    assert moved(LoaderConfig()).fill == fill


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


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentations_are_functions_of_the_image_and_the_random_numbers(image, mode, name):
    pixels = np.asarray(image.convert(mode)).reshape(40, 48, -1)
    before, how = pixels.copy(), MOVED if mode == "RGB" else GRAY
    found = [AUGMENTS[name](pixels, np.random.default_rng(seed), how) for seed in (0, 0, *range(8))]
    assert all(result.shape == pixels.shape and result.dtype == np.uint8 for result in found)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(pixels, before)
    assert name == "none" or any(np.any(result != pixels) for result in found)


def test_magnitudes_vary_around_nine(monkeypatch, image):
    levels = []
    operations = {name: lambda image, level, _: (levels.append(level), image)[1] for name in "ab"}
    monkeypatch.setattr(augment, "RAND_AUGMENT", operations)
    for seed in range(500):
        augment.rand_augment(image, np.random.default_rng(seed), MOVED)
    assert 430 < len(levels) < 570 and max(levels) <= 1
    assert abs(np.mean(levels) - 0.9) < 0.01 and 0.04 < np.std(levels) < 0.055


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2)])
def test_tiny_images_are_augmented(size, mode):
    pixels = np.full((*size, len(mode)), 9, np.uint8)[..., : 3 if mode == "RGB" else 1]
    for name in AUGMENTS:
        for seed in range(40):
            how = MOVED if mode == "RGB" else GRAY
            found = AUGMENTS[name](pixels, np.random.default_rng(seed), how)
            assert found.shape == pixels.shape and found.dtype == np.uint8


@pytest.mark.parametrize("name", ["rand_augment", "three_augment"])
def test_a_batch_is_augmented_by_seed_and_place_alone(prepared, name):
    """Whatever makes it: threads, processes, and hosts that each make a part."""
    config = LoaderConfig(
        prepared, image_size=(16, 16), batch_size=10, num_threads=1, augment=name, seed=4
    )
    with Loader(config) as loader:
        wanted = loader.batch(3)["image"]
    with Loader(replace(config, num_threads=3, num_workers=2)) as loader:
        np.testing.assert_array_equal(loader.batch(3)["image"], wanted)
    for host in (0, 1):
        with Loader(config, host=host, num_hosts=2) as loader:
            np.testing.assert_array_equal(loader.batch(3)["image"], wanted[5 * host : 5 * host + 5])
    for change in ({"augment": "none"}, {"seed": 5}):
        with Loader(replace(config, **change)) as loader:
            assert np.any(loader.batch(3)["image"] != wanted)
