import io
import itertools

import numpy as np
import pytest
from PIL import Image

from nepa_jax.data.decode import decode, decode_pixels
from nepa_jax.data.resize import INTERPOLATIONS, resize_exact, resize_fast

SIDES = [1, 2, 7, 8, 9, 15, 16, 17, 33, 64, 100, 127]


def photo(width, height):
    """Something like a photograph: pink noise in three correlated channels."""
    rng = np.random.default_rng(width * 10_000 + height)
    image = np.full((height, width, 3), 120.0)
    for side in (4, 16, 64):
        noise = rng.normal(0, 60 / side**0.5, (side, side, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel]).resize((width, height), Image.BICUBIC)
            image[..., channel] += np.asarray(layer)
    return np.clip(image, 0, 255).astype(np.uint8)


def psnr(a, b):
    return 10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "gray"])
def test_plain_jpegs_decode_to_pillows_pixels(encode, subsampling):
    for width, height in itertools.product(SIDES, repeat=2):
        image = Image.fromarray(photo(width, height))
        options = {"subsampling": subsampling}
        if subsampling == "gray":
            image, options = image.convert("L"), {}
        for progressive in (False, True):
            data = encode(image, "JPEG", quality=90, progressive=progressive, **options)
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            np.testing.assert_array_equal(decode_pixels(data), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "YCbCr", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_images_decode_to_pillows_pixels(encode, mode, channels):
    image = Image.fromarray(photo(31, 22))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    data = encode(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    expected = np.asarray(decode(data, channels)).reshape(22, 31, channels)
    np.testing.assert_array_equal(decode_pixels(data, channels), expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (100, 80), (37, 224), (1, 1)])
def test_exact_resizes_are_pillows(interpolation, channels, size):
    whole = photo(120, 90)[..., :channels]
    windows = [whole, whole[11:75, 23:101], whole[5:6, 7:8], whole[:, ::-1]]
    for pixels in windows:
        image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if channels == 1 else pixels))
        expected = np.asarray(image.resize(size, INTERPOLATIONS[interpolation]))
        found = resize_exact(pixels, size, interpolation)
        np.testing.assert_array_equal(found, expected.reshape(found.shape))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("scale", [0.3, 0.7, 1.0, 1.1, 1.5, 2.0, 3.3, 4.0, 6.5, 12.0])
def test_fast_resizes_are_close_and_antialiased(interpolation, scale):
    pixels = photo(round(96 * scale), round(64 * scale))
    noise = np.random.default_rng(0).normal(0, 15, pixels.shape)
    pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    exact = resize_exact(pixels, (96, 64), interpolation)
    assert psnr(resize_fast(pixels, (96, 64), interpolation), exact) > 40


@pytest.mark.parametrize("shape", [(1, 1, 3), (5, 300, 3), (300, 5, 1), (224, 224, 3)])
def test_fast_resizes_of_odd_shapes(shape):
    pixels = np.full(shape, 77, np.uint8)
    found = resize_fast(pixels, (48, 32), "bicubic")
    assert found.shape == (32, 48, shape[2]) and found.dtype == np.uint8
    assert np.abs(found.astype(int) - 77).max() <= 1
