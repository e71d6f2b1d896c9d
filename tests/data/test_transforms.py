import math

import numpy as np
import pytest
from PIL import Image

from nepa_jax.data.decode import DecodeError
from nepa_jax.data.settings import LoaderConfig
from nepa_jax.data.transforms import clipped_crop_box, random_resized_crop_box, transform


def apply(config, image, seed=0):
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    out = np.zeros((*config.image_size, pixels.shape[2]), np.uint8)
    transform(config, pixels, np.random.default_rng(seed), out)
    return out


@pytest.mark.parametrize("size", [(500, 375), (100, 640), (64, 64), (3, 200), (1, 1)])
def test_random_boxes_are_inside_and_in_bounds(size):
    width, height = size
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, w, h = random_resized_crop_box(width, height, rng, (0.2, 1.0))
        assert left >= 0 and left + w <= width and top >= 0 and top + h <= height
        assert w > 0 and h > 0


def test_random_boxes_have_the_asked_for_areas_and_ratios():
    rng = np.random.default_rng(0)
    boxes = np.array([random_resized_crop_box(1000, 1000, rng, (0.2, 0.5)) for _ in range(2000)])
    area, ratio = boxes[:, 2] * boxes[:, 3] / 1e6, boxes[:, 2] / boxes[:, 3]
    assert 0.199 < area.min() < 0.21 and 0.49 < area.max() < 0.501
    assert abs(area.mean() - 0.35) < 0.01
    assert 0.74 < ratio.min() < 0.77 and 1.30 < ratio.max() < 1.34
    assert abs(np.log(ratio).mean()) < 0.02  # as many tall as wide ones


def test_impossible_boxes_fall_back_to_the_clipped_centre():
    rng = np.random.default_rng(0)
    assert random_resized_crop_box(1000, 10, rng, (1.0, 1.0)) == (493, 0, 13, 10)
    assert random_resized_crop_box(10, 1000, rng, (1.0, 1.0)) == (0, 493, 10, 13)


def test_a_clipped_box_is_that_of_the_first_try_cut_to_the_image():
    rng = np.random.default_rng(0)
    boxes = np.array([clipped_crop_box(1000, 10, rng, (1.0, 1.0)) for _ in range(200)])
    left, top, w, h = boxes.T
    assert (top == 0).all() and (h == 10).all() and (left + w <= 1000).all()
    assert 86 <= w.min() < 90 and 112 < w.max() <= 116  # of the area's 100 x 100
    one_pixel = clipped_crop_box(1, 1, rng, (0.08, 1.0))
    assert one_pixel == (0, 0, 1, 1)


def test_a_clipped_box_is_the_usual_one_where_that_fits():
    usual, clipped = (np.random.default_rng(3) for _ in "ab")
    for _ in range(50):
        box = clipped_crop_box(1000, 1000, clipped, (0.1, 0.4))
        assert box == random_resized_crop_box(1000, 1000, usual, (0.1, 0.4))


def test_random_crop_is_crop_then_resize(picture):
    image = picture(0, 100, 80)
    config = LoaderConfig(image_size=(32, 48), flip=False, interpolation="bilinear")
    left, top, w, h = random_resized_crop_box(100, 80, np.random.default_rng(5), (0.2, 1.0))
    crop = image.crop((left, top, left + w, top + h)).resize((48, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(apply(config, image, 5), np.asarray(crop))


def test_flip_mirrors_half_of_the_images(picture):
    image = picture(1, 16, 16)
    config = LoaderConfig(image_size=(16, 16), crop="none", flip=True)
    plain = np.asarray(image)
    flipped = [not np.array_equal(apply(config, image, seed), plain) for seed in range(200)]
    assert 70 < sum(flipped) < 130
    np.testing.assert_array_equal(apply(config, image, flipped.index(True)), plain[:, ::-1])


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (1000, 229), (90, 60)])
def test_center_crop_is_resize_and_crop_of_the_short_side(picture, size):
    image = picture(2, *size)
    scale = 256 / min(size)
    resized = tuple(256 if side == min(size) else int(256 * side / min(size)) for side in size)
    assert math.isclose(resized[0] / size[0], scale, rel_tol=0.01)
    big = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = round((resized[0] - 224) / 2), round((resized[1] - 224) / 2)
    expected = np.asarray(big.crop((left, top, left + 224, top + 224)))
    config = LoaderConfig(image_size=(224, 224), crop="center", flip=False)
    np.testing.assert_array_equal(apply(config, image), expected)


@pytest.mark.parametrize("crop_pct", [0.875, 1.0, 0.9])
@pytest.mark.parametrize("size", [(333, 127), (127, 333), (97, 97)])
def test_center_crop_never_leaves_the_image(size, crop_pct):
    image = Image.new("L", size, 255)
    config = LoaderConfig(image_size=(48, 96), crop="center", crop_pct=crop_pct, flip=False)
    assert apply(config, image).min() == 255


def test_none_wants_the_exact_size(picture):
    config = LoaderConfig(image_size=(20, 24), crop="none", flip=False)
    image = picture(3, 24, 20)
    np.testing.assert_array_equal(apply(config, image), np.asarray(image))
    with pytest.raises(DecodeError, match="20 x 25"):
        apply(config, picture(3, 25, 20))


def test_one_channel(picture):
    image = picture(4, 30, 30).convert("L")
    assert apply(LoaderConfig(image_size=(8, 8)), image).shape == (8, 8, 1)
