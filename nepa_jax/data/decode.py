"""Encoded image bytes to pixels, exactly as Pillow and torchvision see them."""

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import numpy as np
import simplejpeg
from PIL import Image

from nepa_jax.base.threads import SharedContext

# Of an image. Below Pillow's own hard limit (179 Mpx), so that the error is always this module's.
MAX_PIXELS = 150_000_000

# All that are read. Pillow knows forty more: some of them start a program on what they are given.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "DIB", "TIFF", "PPM")

MODES = {1: "L", 3: "RGB"}
PLAIN_JPEG = {1: ("Gray",), 3: ("Gray", "YCbCr")}

# What the images that are being decoded may take, in all threads of a process together. A core
# has room for a photo of 20 Mpx, so that only larger ones wait for one another.
BYTES_PER_PIXEL = 12  # 4 in Pillow, as much again to convert, 3 as an array
UNCOUNTED_BYTES = 6 << 20  # of an image: to count it would cost more than it takes
DECODE_BYTES = max(2 << 30, (os.cpu_count() or 1) * (20_000_000 * BYTES_PER_PIXEL))

# Larger than what malloc keeps: else the memory of a large image stays with the thread that had it.
BLOCK_BYTES = 64 << 20

PILLOWS_WARNINGS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # as in warnings.filters


class DecodeError(Exception):
    """These bytes are not an image that can be used. The message says why."""


class Budget:
    """So many bytes for all threads together; one that wants more than are left waits for them."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, number: int) -> Iterator[None]:
        """Around the work that takes `number` bytes, at most `total`."""
        with self._changed:
            self._changed.wait_for(lambda: number <= self._left)
            self._left -= number
        try:
            yield
        finally:
            with self._changed:
                self._left += number
                self._changed.notify_all()


_budget = Budget(DECODE_BYTES)


def _in_large_blocks() -> Callable[[], None]:
    before = Image.core.get_block_size()
    Image.core.set_block_size(BLOCK_BYTES)
    return partial(Image.core.set_block_size, before)


_large_blocks = SharedContext(_in_large_blocks)


def _ignore_warnings() -> Callable[[], None]:
    filters = warnings.filters
    filters.insert(0, PILLOWS_WARNINGS)

    def end() -> None:
        for place in (filters, warnings.filters):  # it may be another one, within catch_warnings
            with suppress(ValueError):
                place.remove(PILLOWS_WARNINGS)

    return end


# Pillow warns about large images and about odd EXIF and palettes. Large images are judged by
# MAX_PIXELS, and the others decode well: one line per image of a million would hide real news.
_quietly = SharedContext(_ignore_warnings)


def identify(data: bytes) -> Image.Image:
    """Opens an image by its header; the pixels are not decoded yet.

    Raises DecodeError if the data is empty, is of none of FORMATS, or has more than MAX_PIXELS.
    """
    if not data:
        raise DecodeError("the file is empty")
    try:
        with _quietly:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # a damaged header can raise nearly anything
        raise _decode_error(error) from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels is more than {MAX_PIXELS:,}")
    return image


def decode(data: bytes, channels: int = 3) -> Image.Image:
    """Decodes an image to mode RGB (channels=3) or L (channels=1), 8 bits per channel.

    The format comes from the bytes, never from a file name. CMYK is converted as Pillow does
    it (inverted when Adobe's marker says so); an alpha channel is dropped, not blended; 16 bits
    keep their upper 8; of an animation the first frame is taken. The EXIF orientation is not
    applied: torchvision does not apply it either, so published results are without it.

    Raises DecodeError if the data is damaged, truncated or of an unusable kind.
    """
    return _converted(identify(data), channels)


@contextmanager
def decoded(data: bytes, channels: int = 3) -> Iterator[np.ndarray]:
    """The pixels of `decode`, uint8 [H, W, channels], in less time where that is possible.

    Within it those of large images count towards DECODE_BYTES: a thread waits until there is room.
    Raises as `decode` does.
    """
    size = _plain_jpeg_size(data, channels)
    image = None if size else identify(data)
    width, height = size or image.size
    number = width * height * BYTES_PER_PIXEL
    with ExitStack() as stack:
        if number > UNCOUNTED_BYTES:
            stack.enter_context(_large_blocks)
            stack.enter_context(_budget.taken(number))
        yield pixels_of(image, channels) if image else _jpeg_pixels(data, channels)


def decode_pixels(data: bytes, channels: int = 3) -> np.ndarray:
    """As `decoded`, to be kept."""
    with decoded(data, channels) as pixels:
        return pixels


def _plain_jpeg_size(data: bytes, channels: int) -> tuple[int, int] | None:
    """The width and height of a gray or YCbCr JPEG; None if Pillow has to look at it.

    Pillow and simplejpeg both decode by libjpeg-turbo, to the same values. Of a colour JPEG Pillow
    makes a gray one by way of RGB, and simplejpeg by dropping the colour: those are not the same.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # no JPEG, or a damaged one
        return None
    plain = space in PLAIN_JPEG[channels] and width * height <= MAX_PIXELS
    return (width, height) if plain else None


def _jpeg_pixels(data: bytes, channels: int) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
    except ValueError:  # damaged: Pillow decides
        return pixels_of(identify(data), channels)


def pixels_of(image: Image.Image, channels: int) -> np.ndarray:
    """The pixels of an opened image, uint8 [H, W, channels]. Raises as `decode` does."""
    return np.asarray(_converted(image, channels)).reshape(image.height, image.width, channels)


def _converted(image: Image.Image, channels: int) -> Image.Image:
    mode = MODES[channels]
    try:
        with _quietly:
            image.load()
            image = _eight_bits(image)
            return image if image.mode == mode else image.convert(mode)
    except (DecodeError, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers raise many kinds for damaged data
        raise _decode_error(error) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grayscale, which `convert` would clip at 255 (an all-white image)."""
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no fixed range")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))


def _decode_error(error: Exception) -> DecodeError:
    if isinstance(error, Image.UnidentifiedImageError):
        return DecodeError("not a known image format")
    return DecodeError(f"{type(error).__name__}: {error}")
