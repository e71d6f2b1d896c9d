import io

import numpy as np
import pytest
from PIL import Image

from nepa_jax.data.prepare.split import prepare_arrays


def encode(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def picture(seed: int, width: int = 24, height: int = 20) -> Image.Image:
    """A smooth colour picture, different for each seed, that survives JPEG."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(name="encode", scope="session")
def encode_fixture():
    return encode


@pytest.fixture(name="picture", scope="session")
def picture_fixture():
    return picture


@pytest.fixture
def tree(tmp_path):
    """A folder with train/ and test/, two classes, and files that are to be left alone."""
    root = tmp_path / "tree"
    for split, count in (("train", 6), ("test", 2)):
        for number, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                data = encode(picture(10 * number + index), "JPEG")
                (root / split / name / f"{index}.JPEG").write_bytes(data)
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "cat" / ".hidden.jpg").write_bytes(b"")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "0.jpg").write_bytes(b"")
    return root


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """50 labelled pictures of 24 x 20 pixels in one shard."""
    out = tmp_path_factory.mktemp("prepared")
    images = [(encode(picture(i)), i % 5, f"{i:02d}.png") for i in range(50)]
    prepare_arrays(images, str(out), classes=list("abcde"))
    return str(out)
