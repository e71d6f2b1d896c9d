"""Shards and records that are not as they were written."""

import os
import resource
import shutil
import subprocess
import sys

import msgpack
import pytest

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.data import records as sources
from nepa_jax.data.loader import Loader, LoaderConfig
from nepa_jax.data.prepare.inspect import inspect
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.data.records import Record, RecordError, RecordSet, open_dataset, pack, unpack


@pytest.mark.parametrize("name", ["a/0.png", "", "caf\u00e9", os.fsdecode(b"\xff.png")])
@pytest.mark.parametrize(("label", "num_classes"), [(0, 1), (6, 7), (None, 0)])
def test_unpack_is_the_inverse_of_pack(name, label, num_classes):
    record = Record(b"\x89PNG", label, name)
    assert unpack(pack(record), num_classes) == record


FIELDS = {"image": b"\x89PNG", "label": 1, "name": "0.png"}


@pytest.mark.trial
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "cat"}, "label is str"),
        ({"label": 1.0}, "label is float"),
        ({"label": True}, "label is bool"),
        ({"label": [1]}, "label is list"),
        ({"label": None}, "label None in a set of 2 classes"),
        ({"label": 2}, "label 2 in a set of 2 classes"),
        ({"label": -1}, "label -1 in a set of 2 classes"),
        ({"label": 1 << 40}, "label 1099511627776 in a set of 2 classes"),
        ({"image": "text"}, "image is str"),
        ({"image": 5}, "image is int"),
        ({"image": None}, "image is NoneType"),
        ({"name": 5}, "name is int"),
        ({"name": b"0.png"}, "name is bytes"),
        ({"name": None}, "name is NoneType"),
    ],
)
def test_a_record_of_wrong_types_or_labels_is_refused(change, words):
    with pytest.raises(RecordError, match=words):
        unpack(msgpack.packb(FIELDS | change), num_classes=2)


@pytest.mark.trial
@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{}", b"\xff" * 40, b"\x91" * 5000, b"\xdf\xff\xff\xff\xff"),
        *map(msgpack.packb, ([1, 2], 5, {1: 2}, msgpack.ExtType(5, b"x"))),
    ],
)
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(RecordError, match="not a record of this format"):
        unpack(data, num_classes=2)


def test_an_unlabelled_set_has_no_labels():
    with pytest.raises(RecordError, match="label 1 in a set of 0 classes"):
        unpack(msgpack.packb(FIELDS), num_classes=0)


@pytest.fixture
def copy(prepared, tmp_path):
    """A set of one shard, and that shard's path."""
    shutil.copytree(prepared, tmp_path / "copy")
    (shard,) = (tmp_path / "copy").glob("*.array_record")
    return tmp_path / "copy", shard


def overwrite(shard, change):
    data = bytearray(shard.read_bytes())
    change(data)
    shard.write_bytes(data)


def flip(place):
    def change(data):
        data[place] ^= 0xFF

    return change


SHARDS = {
    "random": (lambda shard: shard.write_bytes(os.urandom(shard.stat().st_size)), "is damaged"),
    "zeros": (lambda shard: shard.write_bytes(bytes(shard.stat().st_size)), "is damaged"),
    "index": (lambda shard: overwrite(shard, flip(-(1 << 16) + 3)), "is damaged"),
    "cut": (lambda shard: os.truncate(shard, shard.stat().st_size - 1), "bytes instead of"),
    "longer": (lambda shard: os.truncate(shard, shard.stat().st_size + 1), "bytes instead of"),
    "empty": (lambda shard: os.truncate(shard, 0), "0 bytes instead of"),
    "missing": (lambda shard: shard.unlink(), "is missing"),
    "a loop": (lambda shard: (shard.unlink(), shard.symlink_to(shard.name)), "cannot be read"),
    "a folder": (lambda shard: (shard.unlink(), shard.mkdir()), "bytes instead of"),
    "a pipe": (lambda shard: (shard.unlink(), os.mkfifo(shard)), "0 bytes instead of"),
}


@pytest.mark.trial
@pytest.mark.parametrize("reader", [inspect, lambda path: Loader(LoaderConfig(path))])
@pytest.mark.parametrize("damage", SHARDS)
def test_a_dead_shard_is_found_before_anything_else(copy, damage, reader):
    folder, shard = copy
    make, words = SHARDS[damage]
    make(shard)
    with pytest.raises(UserError, match=f"{shard.name}.*{words}"):
        reader(str(folder))


@pytest.mark.trial
def test_fewer_records_than_the_manifest_says(copy):
    folder, _ = copy
    manifest = folder / "dataset.json"
    manifest.write_text(manifest.read_text().replace(": 50", ": 60"))
    with pytest.raises(UserError, match="records instead of 60"):
        open_dataset(folder)


@pytest.mark.trial
def test_records_of_several_shards_and_of_empty_ones(tmp_path, encode, picture):
    images = [(b"" if i % 3 else encode(picture(i)), None, f"{i}.png") for i in range(12)]
    prepare_arrays(images, str(tmp_path))
    records = open_dataset(tmp_path)
    assert len(records) == 4
    (shard,) = records.shards
    parts = (shard._replace(num_records=0), shard._replace(num_records=3), shard)
    several = RecordSet(str(tmp_path), "train", parts, False, (), "")
    assert several.read(range(7)) == records.read([0, 1, 2, 0, 1, 2, 3])
    for index in (-1, 7):
        with pytest.raises(IndexError):
            several[index]


MANY_SHARDS = """
import resource, sys
from nepa_jax.data.records import Record, RecordSet, open_dataset
records = open_dataset(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
many = RecordSet(records.path, "train", records.shards * 300, True, records.classes, "")
print(many[50 * 299].name == records[0].name)
"""


def with_300_shards(path, hard):
    return subprocess.run(
        [sys.executable, "-c", MANY_SHARDS, path, str(hard)], capture_output=True, text=True
    )


@pytest.mark.trial
def test_more_shards_than_files_may_be_open(prepared):
    assert with_300_shards(prepared, hard=4096).stdout.strip() == "True"
    found = with_300_shards(prepared, hard=200)
    assert "UserError" in found.stderr and "ulimit -n" in found.stderr


def test_the_limit_of_open_files_is_raised_and_never_lowered(monkeypatch):
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, value: limits.update(now=value))
    sources.allow_open_files(10)
    assert limits["now"] == (1024, 4096)
    sources.allow_open_files(1024)
    soft, hard = limits["now"]
    assert 1024 + sources.SPARE_FILES < soft < 4096 == hard
    sources.allow_open_files(10_000)
    assert limits["now"] == (4096, 4096)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("Corrupted Riegeli/records file: hash mismatch", RecordError, "damaged block"),
        ("pread() failed: Input/output error; reading X", RecordError, "Input/output error"),
        ("open() failed: Too many open files; opening X", UserError, "ulimit -n"),
        ("pread() failed: Stale file handle; reading X", UnavailableError, "mounted"),
        (
            "pread() failed: Transport endpoint is not connected; reading X",
            UnavailableError,
            "same command again",
        ),
    ],
)
def test_what_the_system_cannot_do_is_no_damaged_record(prepared, monkeypatch, text, kind, words):
    class Reader:
        def read(self, _):
            raise RuntimeError(text)

    records = open_dataset(prepared)
    monkeypatch.setitem(vars(records), "_readers", [Reader()])
    with pytest.raises(kind, match=words):
        records[0]
