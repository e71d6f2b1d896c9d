"""What every written picture must be."""

from pathlib import Path

import numpy as np
from PIL import Image


def assert_picture(path: Path) -> None:
    """A readable PNG with something on it."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100
    assert 0.001 < np.mean(pixels < 200) < 0.95
