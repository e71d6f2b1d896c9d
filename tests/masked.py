"""Small sets of images with class masks, as files in the folders of ADE20K."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200), (220, 220, 40)], np.uint8)


def png(values: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values)
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def mask(seed: int, size: tuple[int, int] = (20, 24), num_classes: int = 3) -> np.ndarray:
    """Bands of classes, uint8 [h, w]."""
    rng = np.random.default_rng(seed)
    bands = rng.integers(0, num_classes, 4, np.uint8)
    return np.repeat(np.repeat(bands, -(-size[0] // 4))[: size[0], None], size[1], axis=1)


def painted(classes: np.ndarray, seed: int = 0) -> np.ndarray:
    """An image whose colours are those of its classes with some noise, uint8 [h, w, 3]."""
    noise = np.random.default_rng(seed).integers(-20, 20, (*classes.shape, 3))
    return (COLORS[classes % len(COLORS)] + noise).clip(0, 255).astype(np.uint8)


def write_tree(root: Path, count: int = 6, size: tuple[int, int] = (20, 24), **files: str) -> Path:
    """So many images with masks of three classes for training, and a third of it for validation."""
    for split, number in (("training", count), ("validation", max(2, count // 3))):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(number):
            seed = index + 100 * (split == "validation")
            classes = mask(seed, size)
            (root / "images" / split / f"{index}.png").write_bytes(png(painted(classes, seed)))
            (root / "annotations" / split / f"{index}.png").write_bytes(png(classes))
    for name, text in files.items():
        (root / f"{name}.txt").write_text(text)
    return root
