"""The demo's images: pieces of real photographs, from packages that ship them.

Crops of nineteen photographs and micrographs that come with scikit-image and scikit-learn, in colour
where they have it; the class is the photograph. A crop shows 32 to 64 px a side, drawn to 32, so that
its scale tells nothing. Every crop has one mean brightness and one contrast, so that how dark or flat
a photograph is tells nothing either; its colours stay its own, and tell something: raw pixels are the
control. Training and test crops come from separate tiles of each photograph and share no pixel.

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
TILE = 64  # px; a crop shows half to all of its side
MIN_CONTRAST = 8.0  # gray levels, of luma; flatter places are mostly noise
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # of RGB, ITU-R BT.601
SCIKIT_IMAGE = (
    "brick.png", "grass.png", "gravel.png", "coins.png", "page.png", "hubble_deep_field.jpg", "ihc.png",
    "chelsea.png", "coffee.png", "astronaut.png", "motorcycle_left.png", "retina.jpg", "cell.png", "text.png",
    "rocket.jpg", "camera.png", "moon.png",
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
        uint8 [n, 32, 32, 3] and labels int32 [n].
    """
    rng = np.random.default_rng([seed, len(split)])
    labels = np.arange(num_images, dtype=np.int32) % len(CLASSES)
    return np.stack([draw_crop(CLASSES[label], split, rng) for label in labels]), labels


def draw_crop(name: str, split: str, rng: np.random.Generator) -> np.ndarray:
    """One crop uint8 [32, 32, 3] whose luma has mean 128 and a standard deviation of 48 levels."""
    photograph, places = photographs()[name], tiles(name, split)
    while True:
        top, left, side = draw_place(places, rng)
        piece = Image.fromarray(photograph[top : top + side, left : left + side])
        crop = np.asarray(piece.resize((SIDE, SIDE), Image.Resampling.LANCZOS), np.float32)
        luma = crop @ LUMA
        if luma.std() >= MIN_CONTRAST:
            even = 128 + 48 * (crop - luma.mean()) / luma.std()
            return np.clip(even, 0, 255).astype(np.uint8)


def draw_place(places: list[tuple[int, int]], rng: np.random.Generator) -> tuple[int, int, int]:
    """Top, left and side of a square in one of the tiles; all scales are equally likely, as octaves are."""
    top, left = places[int(rng.random() * len(places))]
    side = round(SIDE * (TILE / SIDE) ** rng.random())
    top += int(rng.random() * (TILE - side + 1))
    left += int(rng.random() * (TILE - side + 1))
    return top, left, side


@cache
def tiles(name: str, split: str) -> list[tuple[int, int]]:
    """Top left corners of the tiles of 64 px that belong to a split, flat ones left out."""
    luma, parts = photographs()[name] @ LUMA, {0: "test", 1: "validation"}
    rows, columns = (side // TILE for side in luma.shape)
    return [
        (TILE * row, TILE * column)
        for row in range(rows)
        for column in range(columns)
        if parts.get((row + 2 * column) % 5, "train") == split
        and luma[TILE * row : TILE * (row + 1), TILE * column : TILE * (column + 1)].std() >= MIN_CONTRAST
    ]  # fmt: skip


@cache
def photographs() -> dict[str, np.ndarray]:
    """Photographs uint8 [h, w, 3] by class, the short side at most 512 px."""
    import skimage
    import sklearn

    folders = {
        Path(skimage.__file__).parent / "data": SCIKIT_IMAGE,
        Path(sklearn.__file__).parent / "datasets" / "images": SCIKIT_LEARN,
    }
    return {
        Path(name).stem: load_rgb(folder / name)
        for folder, names in folders.items()
        for name in names
    }


def load_rgb(path: Path) -> np.ndarray:
    """uint8 [h, w, 3]; what is gray has three equal channels."""
    image = Image.open(path).convert("RGB")
    scale = min(1.0, 512 / min(image.size))
    size = round(image.width * scale), round(image.height * scale)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


def png_records(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[bytes, int, str]]:
    """Encodes images uint8 [n, H, W, 3] losslessly: (PNG bytes, label, name) of each."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="png", compress_level=1)
        yield buffer.getvalue(), int(label), f"{CLASSES[label]}/{index:06d}.png"
