"""A dataset.json that is not as `prepare` wrote it is one line that names the file and the place."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.data.loader import Loader, LoaderConfig
from nepa_jax.data.manifest import MANIFEST, cannot_read, check_manifest, read_manifest
from nepa_jax.data.prepare.inspect import contact_sheet, inspect, verify
from nepa_jax.data.prepare.split import prepare


@pytest.fixture
def manifest(prepared):
    return read_manifest(prepared)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[]", "holds a JSON list"),
        (b"7", "holds a JSON int"),
        (b"null", "holds a JSON NoneType"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"x": ' * 100_000, "nested too deep"),
        (b'{"name": "\xff"}', "not JSON text.*utf-8"),
        (b'\xff\xfe{"', "not JSON text"),
        (b"", "not JSON text"),
        (b'{"format": "nepa', "not JSON text"),
        (b'{"x": ' + b"9" * 6000 + b"}", "not JSON text"),
        (b"{}", "another program's"),
        (b'{"labels": [["0.png", 3]]}', "another program's"),
        (b'{"format": "nepa_jax.array_record", "version": 2}', "version 2.*update nepa-jax"),
        (b'{"format": "nepa_jax.array_record", "version": "1"}', "version '1'"),
    ],
)
def test_what_is_no_manifest(data, words):
    with pytest.raises(UserError, match=f"^SET/dataset.json .*{words}"):
        check_manifest(data, "SET/dataset.json")


def put(*path_and_value):
    *path, key, value = path_and_value

    def change(manifest):
        place = manifest
        for step in path:
            place = place[step]
        place[key] = value

    return change


def drop(*path):
    def change(manifest):
        place = manifest
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


TRAIN = ("splits", "train")
SHARD = (*TRAIN, "shards", 0)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("name"), "name is missing"),
        (drop("classes"), "classes is missing"),
        (drop("splits"), "splits is missing"),
        (drop(*TRAIN, "num_examples"), "splits.train.num_examples is missing"),
        (drop(*TRAIN, "labelled"), "splits.train.labelled is missing"),
        (drop(*TRAIN, "fingerprint"), "splits.train.fingerprint is missing"),
        (drop(*TRAIN, "shards"), "splits.train.shards is missing"),
        (drop(*SHARD, "file"), r"splits.train.shards\[0\].file is missing"),
        (drop(*SHARD, "num_records"), "num_records is missing"),
        (drop(*SHARD, "bytes"), "bytes is missing"),
        (put("name", 3), "name is 3, and must be text"),
        (put("classes", "cat"), "classes is 'cat', and must be a list"),
        (put("classes", [1, 2]), r"classes is \[1, 2\]"),
        (put("classes", {"a": 0}), "classes is {'a': 0}"),
        (put("classes", []), "labelled is true, and there are no classes"),
        (put("splits", []), r"splits is \[\]"),
        (put("splits", {}), "splits is {}"),
        (put("splits", ["train"]), r"splits is \['train'\]"),
        (put(*TRAIN, []), "'train', which is no split"),
        (put(*TRAIN, None), "'train', which is no split"),
        (put("splits", "\x1b]0;owned\x07", {}), r"\\x1b.*which is no split"),
        (put("splits", "../up", {}), "'../up', which is no split"),
        (put(*TRAIN, "num_examples", "50"), "num_examples is '50'"),
        (put(*TRAIN, "num_examples", 50.0), r"num_examples is 50\.0"),
        (put(*TRAIN, "num_examples", -1), "num_examples is -1"),
        (put(*TRAIN, "num_examples", 0), "num_examples is 0"),
        (put(*TRAIN, "num_examples", True), "num_examples is True"),
        (put(*TRAIN, "num_examples", 99_999), "is 99999, and its shards hold 50 records"),
        (put(*TRAIN, "num_examples", 49), "is 49, and its shards hold 50 records"),
        (put(*TRAIN, "labelled", "yes"), "labelled is 'yes'"),
        (put(*TRAIN, "fingerprint", 5), "fingerprint is 5"),
        (put(*TRAIN, "fingerprint", "ab"), "fingerprint is 'ab'"),
        (put(*TRAIN, "shards", {}), "shards is {}"),
        (put(*TRAIN, "shards", []), r"shards is \[\]"),
        (put(*TRAIN, "shards", ["x"]), r"shards is \['x'\]"),
        (put(*SHARD, "num_records", -50), "num_records is -50"),
        (put(*SHARD, "num_records", "50"), "num_records is '50'"),
        (put(*SHARD, "num_records", 1 << 70), "num_records is 1180591620717411303424"),
        (put(*SHARD, "bytes", None), "bytes is None"),
        (put(*SHARD, "file", 3), "file is 3"),
        (put(*SHARD, "file", "../../etc/passwd"), "file is '../../etc/passwd'"),
        (put(*SHARD, "file", "/etc/passwd"), "file is '/etc/passwd'"),
        (put(*SHARD, "file", ".."), r"file is '\.\.'"),
        (put(*SHARD, "file", "a\0b"), "file is"),
        (put(*SHARD, "file", "\ud800"), "file is"),
        (put(*SHARD, "file", "a" * 5000), "file is 'aaa"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(manifest, change, words):
    change(manifest)
    with pytest.raises(UserError, match=f"^SET/dataset.json: .*{words}.*prepare the data again$"):
        check_manifest(json.dumps(manifest).encode(), "SET/dataset.json")


def test_a_shard_named_twice_would_show_its_records_twice(manifest):
    train = manifest["splits"]["train"]
    train["shards"] *= 2
    train["num_examples"] *= 2
    with pytest.raises(UserError, match="names a file twice"):
        check_manifest(json.dumps(manifest).encode(), "SET/dataset.json")


def test_what_prepare_wrote_is_read_as_it_is(manifest):
    assert check_manifest(json.dumps(manifest).encode(), "SET/dataset.json") == manifest


@pytest.mark.trial
@pytest.mark.parametrize(
    "reader",
    [
        inspect,
        verify,
        lambda path: contact_sheet(path, f"{path}/sheet.png"),
        lambda path: prepare(path, f"{path}-again"),
        lambda path: Loader(LoaderConfig(path)),
    ],
    ids=["inspect", "verify", "sheet", "prepare", "loader"],
)
def test_all_readers_say_it_alike(prepared, tmp_path, reader):
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    (copy / MANIFEST).write_text((copy / MANIFEST).read_text().replace('"classes"', '"klasses"'))
    with pytest.raises(UserError, match=r"dataset\.json: classes is missing"):
        reader(str(copy))


@pytest.mark.trial
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda file: file.symlink_to("/dev/zero"), "not a regular file"),
        (lambda file: file.symlink_to(file.name), "Too many levels of symbolic links"),
        (lambda file: file.symlink_to("nowhere"), r"has no dataset\.json"),
    ],
    ids=["folder", "pipe", "device", "loop", "dead link"],
)
def test_what_is_no_file(tmp_path, make, words):
    make(tmp_path / MANIFEST)
    with pytest.raises(UserError, match=words):
        read_manifest(tmp_path)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "no data set is named"),
        ("gs://bucket/set", "mount it"),
        ("nowhere", "does not exist"),
        ("a" * 300, "File name too long"),
    ],
)
def test_paths_that_lead_nowhere(path, words):
    with pytest.raises(UserError, match=words):
        read_manifest(path)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EACCES, UserError, "Permission denied.*allow reading it"),
        (errno.EMFILE, UserError, "ulimit -n"),
        (errno.ENOTCONN, UnavailableError, "mounted.*same command again"),
        (errno.ESTALE, UnavailableError, "mounted"),
        (errno.EIO, UnavailableError, "mounted"),
    ],
)
def test_mistakes_are_told_from_storage_that_is_away(monkeypatch, tmp_path, code, kind, words):
    (tmp_path / MANIFEST).touch()

    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    with pytest.raises(kind, match=words):
        read_manifest(tmp_path)
    assert isinstance(cannot_read("file", OSError(code, "x")), kind)
