"""Whatever is wrong with the data is handled and counted, or is one clear error."""

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.data.decode import decode_pixels
from nepa_jax.data.loader import Loader, LoaderConfig, iter_epoch
from nepa_jax.data.prepare.inspect import verify
from nepa_jax.data.prepare.split import prepare_arrays


@pytest.fixture
def oddities(encode, picture):
    """Files as they are met in the wild, and whether they are to be decoded."""
    plain = encode(picture(0, 40, 30), "JPEG")
    broken_exif = b"\xff\xe1\x00\x12Exif\x00\x00II*\x00\xff\xff\xff\xff\xff\xff"
    sixteen = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    return {
        "plain.JPEG": (plain, True),
        "cmyk.JPEG": (encode(picture(1, 40, 30).convert("CMYK"), "JPEG"), True),
        "sixteen_bits.JPEG": (encode(sixteen), True),
        "png.JPEG": (encode(picture(2, 40, 30)), True),
        "gif.JPEG": (encode(picture(3, 40, 30), "GIF"), True),
        "webp.JPEG": (encode(picture(4, 40, 30), "WEBP"), True),
        "exif.JPEG": (plain[:2] + broken_exif + plain[2:], True),
        "truncated.JPEG": (plain[:-40], False),
        "zero_bytes.JPEG": (b"", False),
        "text.JPEG": (b"<html>", False),
    }


@pytest.fixture
def odd_set(oddities, tmp_path):
    """All of them that `prepare` takes, three times, and forty plain ones."""
    images = [
        (data, 0, f"{copy}-{name}") for copy in range(3) for name, (data, _) in oddities.items()
    ]
    images += [(oddities["plain.JPEG"][0], 0, f"{i}.JPEG") for i in range(40)]
    entry = prepare_arrays(images, str(tmp_path / "odd"), classes=["x"])
    assert (entry["num_examples"], entry["num_skipped"]) == (64, 6)
    return str(tmp_path / "odd")


def test_odd_images_are_decoded_or_refused(oddities):
    for name, (data, good) in oddities.items():
        try:
            assert decode_pixels(data).shape == (30, 40, 3) and good, name
        except Exception as error:
            assert not good and type(error).__name__ == "DecodeError", name


@pytest.mark.parametrize("resize", ["exact", "fast"])
def test_bad_images_are_substituted_and_counted(odd_set, resize):
    config = LoaderConfig(
        odd_set, image_size=(16, 16), batch_size=64, num_threads=2, resize=resize, max_bad_rate=1.0
    )
    with Loader(config) as loader:
        batch, account = loader.made(0)
        assert loader.stats()["data/substitutes"] == 3 and loader.stats()["data/read_mb"] > 0
    assert len(np.unique(account.index)) >= 64 - 6 and np.all(batch["image"].any((1, 2, 3)))
    found = list(iter_epoch(replace(config, crop="center", flip=False)))
    assert sum(made.account.valid.sum() for made in found) == 61
    assert len(verify(odd_set)["train"]) == 3


def test_huge_images(encode):
    huge = Image.new("L", (10_000, 10_000), 90)
    assert decode_pixels(encode(huge, "JPEG"), 1).shape == (10_000, 10_000, 1)


def test_a_killed_worker_is_an_error_and_not_a_shorter_stream(prepared):
    config = LoaderConfig(prepared, image_size=(16, 12), batch_size=10, num_workers=2)
    with Loader(config) as loader:
        loader.batch(0)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="worker process"):
            for step in range(1, 50):
                loader.batch(step)


def test_a_flipped_byte_in_the_index_of_a_shard(prepared, tmp_path):
    """Whichever byte is hit: an error, or as many examples as before."""
    for place in (0.001, 0.3, 0.6, 0.9, 0.999):
        copy = tmp_path / str(place)
        shutil.copytree(prepared, copy)
        shard = next(copy.glob("*.array_record"))
        data = bytearray(shard.read_bytes())
        data[int(place * len(data))] ^= 0xFF
        shard.write_bytes(data)
        config = LoaderConfig(str(copy), image_size=(8, 8), batch_size=10, num_threads=2)
        try:
            with Loader(config) as loader:
                indices = [len(loader.batch(step)["image"]) for step in range(5)]
            assert indices == [10] * 5
        except UserError as error:
            assert str(copy) in str(error) or "verify" in str(error)


@pytest.mark.parametrize(("host", "num_hosts", "num_workers"), [(1, 2, 1), (2, 3, 2)])
def test_hosts_with_workers_have_their_rows_of_the_same_batch(
    prepared, host, num_hosts, num_workers
):
    plain = LoaderConfig(prepared, image_size=(8, 8), batch_size=12, num_threads=1, resize="fast")
    with Loader(plain) as loader:
        expected = loader.batch(7)
    with Loader(replace(plain, num_workers=num_workers), host, num_hosts) as loader:
        found = loader.batch(7)
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], np.split(value, num_hosts)[host])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"resize": "quick"}, "data.resize = quick.*exact or fast"),
        ({"augment": "randaug"}, "data.augment = randaug.*rand_augment"),
    ],
)
def test_wrong_settings_are_named(prepared, change, words):
    with pytest.raises(UserError, match=words):
        Loader(replace(LoaderConfig(prepared, batch_size=2), **change))


def test_evaluation_is_exact_and_not_augmented(prepared):
    config = LoaderConfig(prepared, image_size=(16, 12), batch_size=10, crop="center", flip=False)
    exact, fast = (
        next(iter_epoch(replace(config, resize=mode))).batch for mode in ("exact", "fast")
    )
    np.testing.assert_array_equal(exact["image"], fast["image"])
    for change in ({"augment": "rand_augment"}, {"flip": True}):
        with pytest.raises(UserError, match="is random"):
            next(iter_epoch(replace(config, **change)))


@pytest.mark.trial
@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (MemoryError(), UserError, "no memory left.*data.num_threads=3"),
        (RuntimeError("pread() failed: Stale file handle; reading X"), UnavailableError, "mounted"),
        (RuntimeError("open() failed: Too many open files; opening X"), UserError, "ulimit -n"),
    ],
)
def test_what_the_system_cannot_do_is_not_a_bad_record(prepared, monkeypatch, error, kind, words):
    """Nothing is substituted: the run stops, and says which way to go on."""

    class Reader:
        def read(self, _):
            raise error

    config = LoaderConfig(prepared, image_size=(8, 8), batch_size=10, num_threads=3)
    with Loader(config) as loader:
        monkeypatch.setitem(vars(loader.records), "_readers", [Reader()])
        with pytest.raises(kind, match=words):
            loader.batch(0)


@pytest.mark.trial
def test_a_batch_larger_than_the_set_names_the_key(prepared):
    with pytest.raises(
        UserError, match=r"^data\.batch_size = 51: .* 50 examples .*; try 50 or less"
    ):
        Loader(LoaderConfig(prepared, batch_size=51))


@pytest.mark.trial
def test_workers_find_a_shard_that_has_gone(prepared, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    config = LoaderConfig(str(copy), image_size=(8, 8), batch_size=10, num_workers=1)
    with Loader(config) as loader:
        next(copy.glob("*.array_record")).unlink()
        with pytest.raises(UserError, match="is missing"):
            loader.batch(0)
