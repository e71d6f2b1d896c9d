"""Encoded image bytes to pixels, exactly as Pillow and torchvision see them."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

# Below Pillow's own hard limit (179 Mpx), so that the error is always this module's.
MAX_PIXELS = 150_000_000

MODES = {1: "L", 3: "RGB"}
PLAIN_JPEG = {1: ("Gray",), 3: ("Gray", "YCbCr")}

# Pillow warns about large images and about odd EXIF and palettes. Large images are judged by
# MAX_PIXELS, and the others decode well: one line per image of a million would hide real news.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class DecodeError(Exception):
    """These bytes are not an image that can be used. The message says why."""


def identify(data: bytes) -> Image.Image:
    """Opens an image by its header; the pixels are not decoded yet.

    Raises DecodeError if the data is empty, is no known format, or has more than MAX_PIXELS.
    """
    if not data:
        raise DecodeError("the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # a damaged header can raise nearly anything
        raise DecodeError(_reason(error)) from error
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
    image = identify(data)
    try:
        image.load()
        return _eight_bits(image).convert(MODES[channels])
    except Exception as error:  # Pillow's parsers raise many kinds for damaged data
        raise DecodeError(_reason(error)) from error


def decode_pixels(data: bytes, channels: int = 3) -> np.ndarray:
    """The pixels of `decode`, uint8 [H, W, channels], in less time where that is possible.

    Raises as `decode` does.
    """
    pixels = _decode_plain_jpeg(data, channels)
    if pixels is not None:
        return pixels
    image = decode(data, channels)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _decode_plain_jpeg(data: bytes, channels: int) -> np.ndarray | None:
    """The pixels of an undamaged gray or YCbCr JPEG; None if Pillow has to look at it.

    Pillow and simplejpeg both decode by libjpeg-turbo, to the same values. Of a colour JPEG Pillow
    makes a gray one by way of RGB, and simplejpeg by dropping the colour: those are not the same.
    """
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if space not in PLAIN_JPEG[channels] or width * height > MAX_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, "RGB" if channels == 3 else "GRAY")
    except ValueError:  # no JPEG, or a damaged one
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit grayscale, which `convert` would clip at 255 (an all-white image)."""
    if image.mode == "F":
        raise DecodeError("floating-point pixels have no fixed range")
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, DecodeError):
        return str(error)
    if isinstance(error, Image.UnidentifiedImageError):
        return "not a known image format"
    return f"{type(error).__name__}: {error}"
