import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nepa_jax.data.decode import MAX_PIXELS, DecodeError, decode, identify


def same(image, expected):
    assert image.mode == expected.mode
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_the_bytes_decide_the_format(encode, picture, image_format):
    data = encode(picture(0), image_format)
    same(decode(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_modes_convert_as_pillow_converts_them(encode, picture, mode, channels):
    image_format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    data = encode(picture(1).convert(mode), image_format)
    image = decode(data, channels)
    same(image, Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB"))


def test_cmyk_jpeg_keeps_its_colours(encode, picture):
    original = np.asarray(picture(2), int)
    image = decode(encode(picture(2).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(np.asarray(image, int) - original).mean() < 6


def test_sixteen_bits_are_scaled(encode):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    image = decode(encode(Image.fromarray(ramp)))
    np.testing.assert_array_equal(np.asarray(image)[..., 0], ramp >> 8)


def test_alpha_is_dropped(encode):
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode(encode(image)).getpixel((0, 0)) == (10, 20, 30)


def test_odd_palettes_do_not_warn(encode, picture):
    data = encode(picture(3).convert("P"), "PNG", transparency=bytes(range(256)))
    code = "import sys; from nepa_jax.data.decode import decode; decode(sys.stdin.buffer.read())"
    run = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert run.stderr == b""


def test_exif_rotation_is_not_applied(encode, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode(encode(picture(4, 30, 20), "JPEG", exif=exif))
    assert image.size == (30, 20)


@pytest.mark.filterwarnings("ignore")
def test_broken_exif_is_ignored(encode, picture):
    data = encode(picture(5), "JPEG")
    broken = b"Exif\x00\x00II*\x00\xff\xff\xff\xff garbage"
    segment = b"\xff\xe1" + (len(broken) + 2).to_bytes(2, "big") + broken
    same(decode(data[:2] + segment + data[2:]), decode(data))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_data_is_an_error(encode, picture, image_format):
    data = encode(picture(6, 200, 200), image_format)
    with pytest.raises(DecodeError):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 40]
)
def test_data_that_is_no_image_is_an_error(data):
    with pytest.raises(DecodeError):
        decode(data)


def test_floating_point_images_are_an_error(encode):
    with pytest.raises(DecodeError, match="floating"):
        decode(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))


@pytest.mark.filterwarnings("ignore")
def test_absurd_sizes_are_an_error_without_decoding(encode):
    image = Image.new("1", (MAX_PIXELS // 10_000 + 1, 10_000))
    with pytest.raises(DecodeError, match="more than"):
        identify(encode(image, "PNG"))
