import io
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from nepa_jax.data import decode as decoding
from nepa_jax.data.decode import (
    BYTES_PER_PIXEL,
    DECODE_BYTES,
    MAX_PIXELS,
    Budget,
    DecodeError,
    decode,
    decode_pixels,
    decoded,
    identify,
)
from nepa_jax.data.prepare.listing import IMAGE_SUFFIXES


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


@pytest.mark.trial
@pytest.mark.parametrize("image_format", ["EPS", "PDF", "ICO", "TGA", "PCX", "DDS", "SGI", "IM"])
def test_only_listed_formats_are_opened(encode, picture, image_format, monkeypatch):
    """EPS would start Ghostscript; the others have decoders that no one has looked at for years."""
    data = encode(picture(7), image_format)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    for reader in (identify, decode, decode_pixels):
        with pytest.raises(DecodeError, match="not a known image format"):
            reader(data)


def test_all_that_prepare_takes_by_its_name_is_read(encode, picture):
    extensions = Image.registered_extensions()
    for suffix in IMAGE_SUFFIXES - {".pbm", ".pgm", ".pnm"}:  # variants of PPM
        data = encode(picture(8), extensions[suffix])
        assert decode_pixels(data).shape == (20, 24, 3), suffix


def test_a_jpeg_of_several_pictures_is_its_first(encode, picture):
    data = encode(picture(9), "MPO", save_all=True, append_images=[picture(10)])
    same(decode(data), decode(encode(picture(9), "JPEG")))


@pytest.mark.trial
@pytest.mark.parametrize(("image_format", "mode"), [("PNG", "RGB"), ("JPEG", "RGB"), ("JPEG", "L")])
def test_threads_share_the_memory_for_pixels(encode, image_format, mode, monkeypatch):
    """Images of which two do not fit are decoded one after the other, all of them."""
    monkeypatch.setattr(decoding, "_budget", Budget(1_500_000 * BYTES_PER_PIXEL))
    data = encode(Image.new(mode, (1000, 1000), 5), image_format)
    at_work, most = [], []

    def work(_):
        with decoded(data) as pixels:
            at_work.append(1)
            most.append(len(at_work))
            time.sleep(0.01)
            at_work.pop()
            return pixels.shape

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(8))) == {(1000, 1000, 3)}
    assert max(most) == 1


def test_small_images_do_not_wait(encode, picture):
    together = threading.Barrier(4, timeout=10)

    def work(_):
        with decoded(encode(picture(11))):
            together.wait()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_an_image_that_fails_gives_its_memory_back(encode, picture, monkeypatch):
    budget = Budget(DECODE_BYTES)
    monkeypatch.setattr(decoding, "_budget", budget)
    for data in (encode(picture(12), "JPEG")[:-40], encode(picture(13))[:-40]):
        with pytest.raises(DecodeError):
            decode_pixels(data)
    with pytest.raises(ZeroDivisionError), decoded(encode(picture(14))):
        1 / 0  # noqa: B018
    with budget.taken(DECODE_BYTES):  # all of it is there
        pass


def test_the_largest_image_fits_into_the_budget():
    assert MAX_PIXELS * BYTES_PER_PIXEL <= DECODE_BYTES


BOMBS = r"""
import re, sys
from concurrent.futures import ThreadPoolExecutor
from nepa_jax.data.decode import decode_pixels
data = sys.stdin.buffer.read()
decode = lambda _: decode_pixels(data).shape
with ThreadPoolExecutor(4) as pool:
    print(set(pool.map(decode, range(4))), end=" ")
# Not ru_maxrss, which begins with the size of the process that this one was forked from.
print(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.trial
def test_small_files_of_large_pictures_do_not_fill_the_memory(encode):
    """Nor does the memory of one stay with the thread that had it."""
    data = encode(Image.new("RGB", (6_000, 6_000), (1, 2, 3)))
    code = "import nepa_jax.data.decode as d; d._budget = d.Budget(600_000_000)" + BOMBS
    run = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    shape, kib = run.stdout.decode().rsplit(" ", 1)
    assert shape == "{(6000, 6000, 3)}"
    assert int(kib) < 700_000, "one takes 360 MB"


@pytest.mark.trial
def test_too_little_memory_is_not_a_damaged_image(encode, picture, monkeypatch):
    def fail(*_):
        raise MemoryError

    data = encode(picture(15).convert("P"))
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        decode_pixels(data)
