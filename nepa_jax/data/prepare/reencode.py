"""Smaller JPEGs for faster training: what `--reencode` does to each image."""

from dataclasses import dataclass

import numpy as np
import simplejpeg

from nepa_jax.base.errors import UserError
from nepa_jax.data.decode import decoded, identify
from nepa_jax.data.resize import resize_exact

KEYS = ("short_side", "quality")


@dataclass(frozen=True)
class Reencode:
    """Shrinks an image until its shorter side is `short_side`, and encodes it at `quality`."""

    short_side: int
    quality: int

    def __call__(self, data: bytes) -> bytes:
        """An encoded image to a JPEG (4:2:0, or gray), or to itself if the JPEG is no smaller.

        Raises DecodeError if the image cannot be decoded.
        """
        gray = identify(data).mode in ("L", "1")
        space = ("GRAY", "Gray") if gray else ("RGB", "420")
        with decoded(data, 1 if gray else 3) as pixels:
            pixels = np.ascontiguousarray(self._shrink(pixels))
            encoded = simplejpeg.encode_jpeg(pixels, self.quality, *space)
        return min(data, encoded, key=len)

    def _shrink(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        share = self.short_side / min(height, width)
        if share >= 1:
            return pixels
        return resize_exact(pixels, (round(width * share), round(height * share)), "bicubic")


def parse_reencode(text: str) -> Reencode:
    """Reads "short_side=384,quality=90". Raises UserError for anything else."""
    pairs = [part.split("=") for part in text.split(",")]
    if sorted(pair[0] for pair in pairs) != sorted(KEYS) or any(len(pair) != 2 for pair in pairs):
        raise _wrong(text, "write short_side=384,quality=90")
    try:
        values = {key: int(value) for key, value in pairs}
    except ValueError as error:
        raise _wrong(text, "write whole numbers") from error
    if values["short_side"] < 1 or not 1 <= values["quality"] <= 100:
        raise _wrong(text, "use a short_side above 0 and a quality of 1 to 100")
    return Reencode(**values)


def _wrong(text: str, remedy: str) -> UserError:
    return UserError(f"--reencode={text}: {remedy}")
