"""The demo's images: structure in real photographs, from packages that ship them.

Crops of 32 px from sixteen photographs and micrographs that come with scikit-image and scikit-learn;
the class is the photograph. Every crop is gray with one mean and one contrast, so that nothing but
the structure tells a brick wall from a retina. Training and test crops come from separate tiles of
each photograph and share no pixel.

Why not handwritten digits placed at random among clutter: there neither method's pooled features
rose above an untrained encoder's within the few minutes that a demo has on two cores.
"""

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32  # px, of a crop
TILE = 48  # px
MIN_CONTRAST = 4.0  # gray levels; flatter places say nothing
SCIKIT_IMAGE = (
    "brick.png", "grass.png", "gravel.png", "coins.png", "page.png", "hubble_deep_field.jpg", "ihc.png",
    "chelsea.png", "coffee.png", "astronaut.png", "motorcycle_left.png", "retina.jpg", "cell.png", "text.png",
)  # fmt: skip
SCIKIT_LEARN = ("china.jpg", "flower.jpg")
CLASSES = tuple(sorted(Path(name).stem for name in SCIKIT_IMAGE + SCIKIT_LEARN))


def crops(split: str, num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws crops from one split's tiles, every photograph equally often.

    Args:
        split: ``train``, ``validation`` or ``test``: 3, 1 and 1 of every five tiles.
        num_images: any number.
        seed: the same seed gives the same crops.

    Returns:
        uint8 [n, 32, 32, 3] (gray) and labels int32 [n].
    """
    rng = np.random.default_rng([seed, len(split)])
    labels = np.arange(num_images, dtype=np.int32) % len(CLASSES)
    images = np.stack([draw_crop(CLASSES[label], split, rng) for label in labels])
    return np.repeat(images[..., None], 3, axis=3), labels


def draw_crop(name: str, split: str, rng: np.random.Generator) -> np.ndarray:
    """One crop uint8 [32, 32] with mean 128 and a standard deviation of 48 gray levels."""
    photograph, places = photographs()[name], tiles(name, split)
    while True:
        top, left = places[int(rng.random() * len(places))]
        top += int(rng.random() * (TILE - SIDE + 1))
        left += int(rng.random() * (TILE - SIDE + 1))
        crop = photograph[top : top + SIDE, left : left + SIDE]
        if crop.std() >= MIN_CONTRAST:
            return np.clip(128 + 48 * (crop - crop.mean()) / crop.std(), 0, 255).astype(np.uint8)


@cache
def tiles(name: str, split: str) -> list[tuple[int, int]]:
    """Top left corners of the tiles of 48 px that belong to a split, flat ones left out."""
    photograph, parts = photographs()[name], {0: "test", 1: "validation"}
    rows, columns = (side // TILE for side in photograph.shape)
    return [
        (TILE * row, TILE * column)
        for row in range(rows)
        for column in range(columns)
        if parts.get((row + 2 * column) % 5, "train") == split
        and photograph[TILE * row : TILE * (row + 1), TILE * column : TILE * (column + 1)].std() >= 2 * MIN_CONTRAST
    ]  # fmt: skip


@cache
def photographs() -> dict[str, np.ndarray]:
    """Gray photographs float32 [h, w] by class, the short side at most 512 px."""
    import skimage
    import sklearn

    folders = {
        Path(skimage.__file__).parent / "data": SCIKIT_IMAGE,
        Path(sklearn.__file__).parent / "datasets" / "images": SCIKIT_LEARN,
    }
    return {
        Path(name).stem: load_gray(folder / name)
        for folder, names in folders.items()
        for name in names
    }


def load_gray(path: Path) -> np.ndarray:
    """float32 [h, w]."""
    image = Image.open(path).convert("L")
    scale = min(1.0, 512 / min(image.size))
    size = round(image.width * scale), round(image.height * scale)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)


def png_records(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[bytes, int, str]]:
    """Encodes images uint8 [n, H, W, 3] losslessly: (PNG bytes, label, name) of each."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="png", compress_level=1)
        yield buffer.getvalue(), int(label), f"{CLASSES[label]}/{index:06d}.png"
