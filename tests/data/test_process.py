"""What belongs to the whole process is as it was, before and after images are decoded."""

import csv
import gc
import subprocess
import sys
import threading
import time
import warnings

import cv2
import pytest
from PIL import Image, ImageFile

from nepa_jax.data import decode
from nepa_jax.data.decode import BLOCK_BYTES, decoded
from nepa_jax.data.loader import Loader, LoaderConfig
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.tables import read_table


def settings() -> tuple:
    """Everything of OpenCV, Pillow and Python that decoding has to do with."""
    limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, Image.core.get_block_size()
    return cv2.getNumThreads(), limits, [*warnings.filters]


@pytest.fixture(autouse=True)
def two_threads():
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    yield
    cv2.setNumThreads(before)


@pytest.fixture
def finish():
    """Waits for the threads of a closed loader, which finish the batch that they are at."""
    others = set(threading.enumerate())

    def wait() -> None:
        deadline = time.monotonic() + 30
        while any(t.name.startswith("decode") for t in {*threading.enumerate()} - others):
            assert time.monotonic() < deadline
            gc.collect()
            time.sleep(0.05)

    return wait


def loader(path, num_workers=0):
    return Loader(LoaderConfig(path, image_size=(8, 8), batch_size=10, num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_puts_back_what_it_sets(prepared, num_workers, finish):
    before = settings()
    with loader(prepared, num_workers) as batches:
        batches.batch(0)
        assert cv2.getNumThreads() == (2 if num_workers else 1)
    finish()
    assert settings() == before


def test_of_two_loaders_the_last_one_puts_back(prepared, finish):
    before = settings()
    first, second = loader(prepared), loader(prepared)
    first.batch(0)
    second.batch(0)
    first.close()
    assert cv2.getNumThreads() == 1
    second.close()
    finish()
    assert settings() == before


def warn() -> None:
    """Of Pillow, and of others."""
    warnings.warn_explicit("odd EXIF", UserWarning, "Image.py", 1, "PIL.Image")
    warnings.warn("news", stacklevel=1)


def test_pillows_warnings_are_ignored_meanwhile_and_no_others(encode, picture, monkeypatch):
    monkeypatch.setattr(decode, "_eight_bits", lambda image: (warn(), image)[1])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        before = [*warnings.filters]
        decode.decode(encode(picture(0)))
        assert warnings.filters == before
        warn()
    assert [str(warning.message) for warning in told] == ["news", "odd EXIF", "news"]


def test_filters_of_others_may_come_and_go_meanwhile(encode, picture, monkeypatch):
    before, others = [*warnings.filters], warnings.catch_warnings()
    monkeypatch.setattr(decode, "_eight_bits", lambda image: (others.__enter__(), image)[1])
    decode.decode(encode(picture(0)))
    assert warnings.filters == before
    others.__exit__()
    assert warnings.filters == before


def test_a_table_may_have_long_cells_and_others_tables_may_not(tmp_path):
    before, file = csv.field_size_limit(), tmp_path / "labels.csv"
    file.write_text(f"0.png,cat\n{'1' * 200_000}.png,dog\n")
    assert len(read_table(file, LeftOut())[1][0]) == 200_004
    assert csv.field_size_limit() == before


def test_large_images_are_in_large_blocks_and_the_next_are_not(encode):
    data, before = encode(Image.new("RGB", (2000, 1000))), Image.core.get_block_size()
    with decoded(data):
        assert Image.core.get_block_size() == BLOCK_BYTES != before
    assert Image.core.get_block_size() == before


ENCODE = """
import sys, warnings, cv2, jax, flax.nnx, orbax.checkpoint, numpy as np
from PIL import Image, ImageFile
def settings():
    limits = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, Image.core.get_block_size()
    return cv2.getNumThreads(), limits, [*warnings.filters]
cv2.setNumThreads(2)
before = settings()
import nepa_jax.loading, nepa_jax.evals.embed, nepa_jax.train
from nepa_jax.data.images import as_batch
from nepa_jax.data.settings import LoaderConfig
as_batch(sys.argv[1:], LoaderConfig(image_size=(32, 32), crop="center", flip=False), 16)
print(settings() == before)
"""


def test_a_users_process_stays_as_it_was_when_it_encodes_files(tmp_path, encode, picture):
    files = [tmp_path / "0.png", tmp_path / "1.jpg"]
    files[0].write_bytes(encode(picture(0, 2000, 1000)))
    files[1].write_bytes(encode(picture(1, 80, 60), "JPEG"))
    found = subprocess.run(
        [sys.executable, "-c", ENCODE, *map(str, files)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "True", found.stderr
