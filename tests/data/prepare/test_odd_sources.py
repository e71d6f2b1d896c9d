"""Sources of images as people have them: what of them is taken, and that all else is told."""

import bz2
import gzip
import io
import os
import tarfile
import zipfile
from collections import Counter

import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.data.prepare.archives import ALWAYS_UNPACKED
from nepa_jax.data.prepare.listing import IMAGE_SUFFIXES
from nepa_jax.data.prepare.split import prepare
from nepa_jax.data.records import open_dataset

pytestmark = pytest.mark.trial


@pytest.fixture(scope="module")
def photo(encode, picture):
    return encode(picture(0), "JPEG")


@pytest.fixture
def make(tmp_path, photo):
    """Writes files of these names, with a picture in each, below a folder."""

    def make(*names, data=photo):
        for name in names:
            file = tmp_path / "source" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return tmp_path / "source"

    return make


@pytest.fixture
def taken(tmp_path):
    """The names of the images that `prepare` takes, and the classes."""

    def taken(source, split="train"):
        prepare(str(source), str(tmp_path / "out"), split)
        records = open_dataset(tmp_path / "out", split)
        names = sorted(record.name for record in records.read(range(len(records))))
        return names, records.classes

    return taken


def add(archive, name, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(data))


def tar_of(names, data):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in names:
            add(archive, name, data)
    return out.getvalue()


CAT_AND_DOG = (["cat/1.jpg", "dog/1.jpg"], ("cat", "dog"))


@pytest.mark.parametrize(
    "folders",
    [
        ("train/cat", "train/dog", "val/cat", "val/dog"),
        ("Train/cat", "Train/dog", "Test/cat"),
        ("train2017/cat", "train2017/dog", "val2017/cat"),
        ("seg_train/seg_train/cat", "seg_train/seg_train/dog", "seg_test/seg_test/cat"),
        ("training/cat", "training/dog", "validation/cat"),
        ("train/images/cat", "train/images/dog", "valid/images/cat"),
        ("set/v1/train/cat", "set/v1/train/dog", "set/v1/dev/cat"),
        ("cat/train", "dog/train", "cat/test", "dog/test"),
        ("train/cat", "train/dog", "val/cat", "samples/x"),
        ("train/cat", "train/dog", "samples"),
    ],
)
def test_splits_are_no_classes(make, taken, folders):
    assert taken(make(*(f"{folder}/1.jpg" for folder in folders))) == CAT_AND_DOG


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (
            ("train2014/cat", "train2017/cat", "val/cat"),
            "more than one folder.*train2014, train2017",
        ),
        (("test/cat", "val/cat"), "no split 'train': choose --split from test, val"),
        (("box_train_a/x", "box_test_b/x"), "named like splits"),
    ],
)
def test_splits_that_are_not_clear_are_refused(make, taken, folders, words):
    with pytest.raises(UserError, match=words):
        taken(make(*(f"{folder}/1.jpg" for folder in folders)))


@pytest.mark.parametrize(
    ("junk", "words"),
    [
        ("cat/@eaDir/1.jpg/THUMB_M.jpg", "systems put there: 1"),
        ("$RECYCLE.BIN/S-1/a.jpg", "systems put there: 1"),
        ("System Volume Information/a.jpg", "systems put there: 1"),
        ("cat/._1.jpg", "systems put there: 1"),
        (".Trash-1000/files/a.jpg", "systems put there: 1"),
        ("cat/.ipynb_checkpoints/1.jpg", "systems put there: 1"),
        (".22-long/1.jpg", "hidden files"),
        ("cat/1.HEIC", "format that is not read"),
        ("dog.zip", "archives inside"),
        ("metadata.csv", "no images by their names"),
        ("dataset.json", "no images by their names"),
        ("cover.jpg", "outside of the class folders"),
    ],
)
def test_what_is_left_out_is_told(make, taken, capsys, junk, words):
    assert taken(make("cat/1.jpg", "dog/1.jpg", junk)) == CAT_AND_DOG
    said = capsys.readouterr().err
    assert words in said and junk in said


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_suffixes_that_are_taken(make, taken, suffix):
    names, _ = taken(make(f"cat/1{suffix.upper()}", f"dog/1{suffix}"))
    assert len(names) == 2


@pytest.mark.parametrize(
    ("link", "target"), [("latest", "."), ("cat/up", ".."), ("cat/on", "../dog")]
)
def test_a_folder_is_entered_once(make, taken, capsys, link, target):
    source = make("cat/1.jpg", "dog/1.jpg")
    os.symlink(target, source / link)
    os.symlink("nowhere", source / "cat" / "dead.jpg")
    os.symlink("itself.jpg", source / "cat" / "itself.jpg")
    assert taken(source) == CAT_AND_DOG
    said = capsys.readouterr().err
    assert f"read already: 1, such as {link}" in said and "no file of the archive" in said


def test_links_to_folders_outside_are_followed(make, taken, tmp_path):
    source = make("cat/1.jpg")
    (tmp_path / "elsewhere").mkdir()
    (source / "cat" / "1.jpg").rename(tmp_path / "elsewhere" / "1.jpg")
    (source / "cat").rmdir()
    os.symlink(tmp_path / "elsewhere", source / "cat")
    make("dog/1.jpg")
    assert taken(source) == CAT_AND_DOG


def test_folders_that_cannot_be_listed(make, taken, capsys, monkeypatch):
    source, scandir = make("cat/1.jpg", "dog/1.jpg", "eel/1.jpg"), os.scandir

    def closed(path):
        if str(path).endswith("eel"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert taken(source) == CAT_AND_DOG
    assert "cannot be listed: 1, such as eel" in capsys.readouterr().err


def test_a_pipe_among_the_images(make, taken, capsys):
    source = make("cat/1.jpg", "dog/1.jpg")
    os.mkfifo(source / "cat" / "2.jpg")
    assert taken(source) == CAT_AND_DOG
    assert "neither files nor folders" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["header", "zeros", "first cut", "cut at header", "cut in data"])
def test_a_tar_is_never_shortened(tmp_path, taken, photo, place):
    data = bytearray(tar_of([f"{c}/{i}.jpg" for c in "ab" for i in range(5)], photo))
    (tmp_path / "a.tar").write_bytes(data)
    with tarfile.open(tmp_path / "a.tar") as archive:
        at = archive.getmembers()[6].offset
    if place == "header":
        data[at + 5] ^= 1
    elif place == "zeros":
        data[at : at + 512] = bytes(512)
    else:
        del data[at + {"first cut": 100, "cut at header": 0, "cut in data": 600}[place] :]
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tar is cut short or damaged behind [ab]/\d\.jpg"):
        taken(tmp_path / "a.tar")


@pytest.mark.parametrize("appended", [b"", bytes(5000)])
def test_tars_behind_one_another(tmp_path, taken, photo, appended):
    both = tar_of(["cat/1.jpg"], photo) + tar_of(["dog/1.jpg"], photo) + appended
    (tmp_path / "a.tar").write_bytes(both)
    assert taken(tmp_path / "a.tar") == CAT_AND_DOG


def test_a_tar_comes_to_what_unpacking_gives(tmp_path, taken, photo, capsys):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "./cat/0.jpg", b"old")
        add(archive, "cat/0.jpg", photo)
        add(archive, "dog/hard.jpg", type=tarfile.LNKTYPE, linkname="cat/0.jpg")
        add(archive, "dog/soft.jpg", type=tarfile.SYMTYPE, linkname="../cat/0.jpg")
        add(archive, "dog/dead.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(archive, "dog/loop.jpg", type=tarfile.SYMTYPE, linkname="loop.jpg")
        add(archive, "../../up/cat/2.jpg", photo)
        add(archive, "/cat/../dog/4.jpg", photo)
        add(archive, "dog/pipe.jpg", type=tarfile.FIFOTYPE)
        add(archive, "last.zip", b"PK\5\6" + bytes(18))
    names, classes = taken(tmp_path / "a.tar")
    assert names == ["cat/0.jpg", "dog/4.jpg", "dog/hard.jpg", "dog/soft.jpg"]
    assert classes == ("cat", "dog")
    said = capsys.readouterr().err
    for words in ("come again later", "no file of the archive: 2", "lead out", "neither files"):
        assert words in said


def test_tars_nested_deep(tmp_path, photo, taken, capsys):
    data = tar_of(["cat/1.jpg"], photo)
    for _ in range(60):
        data = tar_of(["a.tar"], data)
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(UserError, match="nested too deep"):
        taken(tmp_path / "a.tar")


def test_a_zip_of_windows_with_doubled_and_encrypted_names(tmp_path, taken, photo, capsys):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("photos\\cat\\1.jpg", b"old")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("photos\\cat\\1.jpg", photo)
        archive.writestr("/photos/dog/1.jpg", photo)
        archive.writestr("../dog/2.jpg", photo)
        archive.writestr("photos/dog/secret.jpg", photo)
    data = bytearray((tmp_path / "a.zip").read_bytes())
    entry = data.rindex(b"PK\1\2")  # of secret.jpg
    data[entry + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert taken(tmp_path / "a.zip") == CAT_AND_DOG
    said = capsys.readouterr().err
    assert "come again later" in said and "lead out" in said
    assert "encrypted files" in said and "photos/dog/secret.jpg" in said


def test_a_zip_member_above_the_budget_is_not_read(tmp_path, taken, photo, capsys, monkeypatch):
    monkeypatch.setattr("nepa_jax.data.prepare.listing.MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.jpg", photo)
        archive.writestr("dog/1.jpg", photo)
        archive.writestr("dog/bomb.jpg", bytes(2 << 20))
    assert taken(tmp_path / "a.zip") == CAT_AND_DOG
    assert "such as dog/bomb.jpg" in capsys.readouterr().err


def test_a_tar_that_unpacks_to_a_thousand_times_its_size(tmp_path, taken):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(ALWAYS_UNPACKED + (1 << 20)), 1))
    with pytest.raises(UserError, match="100 times its size"):
        taken(tmp_path / "a.tar.gz")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"<html>not found", "neither a folder, a zip nor a tar"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "unzstd"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "7z x"),
        (b"PK\3\4" + bytes(600), "cut short or damaged"),
        (gzip.compress(bytes(range(256)) * 40)[:-30], "cut short or damaged"),
        (gzip.compress(b"x" * 9000)[:12] + bytes(99), "cut short or damaged"),
        (bz2.compress(b"x" * 9000)[:20] + bytes(99), "cut short or damaged"),
    ],
)
def test_files_that_are_no_archives(tmp_path, taken, data, words):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(UserError, match=words):
        taken(tmp_path / "a")


@pytest.mark.parametrize("classes", [("0", "2"), ("cat", "dog")])
def test_webdataset(tmp_path, photo, classes, encode):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for k, name in enumerate(classes):
            add(archive, f"{k:04d}.jpg", photo)
            add(archive, f"{k:04d}.cls", name.encode())
            add(archive, f"{k:04d}.seg.png", photo)
    prepare(str(tmp_path / "a.tar"), str(tmp_path / "out"))
    records = open_dataset(tmp_path / "out")
    found = {records.classes[record.label] for record in records.read(range(len(records)))}
    assert len(records) == 2 and found == set(classes)


def test_the_same_again_is_kept(make, tmp_path, capsys):
    source, out = make("cat/1.jpg", "dog/1.jpg"), tmp_path / "out"
    first = prepare(str(source), str(out))
    shard = out / first["shards"][0]["file"]
    written = shard.stat().st_mtime_ns
    assert prepare(str(source), str(out)) == first
    assert shard.stat().st_mtime_ns == written and "already" in capsys.readouterr().err
    shard.unlink()
    assert prepare(str(source), str(out)) == first and shard.exists()
    make("dog/2.jpg")
    with pytest.raises(UserError, match="of other images"):
        prepare(str(source), str(out))


@pytest.mark.parametrize(
    ("source", "out", "words"),
    [
        ("https://host/a.zip", "out", "not on this machine: download it"),
        ("", "out", "an empty name"),
        ("source", "", "--out is empty"),
        ("source", "source", "inside of it"),
        ("source", "source/out", "inside of it"),
        ("/dev/null", "out", "neither a file nor a folder"),
    ],
)
def test_places_that_cannot_be(make, tmp_path, monkeypatch, source, out, words):
    make("cat/1.jpg")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        prepare(source, out)
    assert sorted(os.listdir(tmp_path / "source")) == ["cat"]


def test_unusable_images_are_told_by_kind(make, taken, capsys):
    make("cat/1.jpg", "dog/1.jpg")
    make(*(f"cat/empty{k}.jpg" for k in range(5)), data=b"")
    source = make("cat/text.jpg", "dog/text.jpg", data=b"<html>")
    assert taken(source) == CAT_AND_DOG
    lines = capsys.readouterr().err.splitlines()
    kinds = Counter(line.split(",")[0] for line in lines)
    assert kinds["warning: left out: the file is empty: 5"] == 1
    assert kinds["warning: left out: not a known image format: 2"] == 1 or any(
        "known image format" in line and ": 2" in line for line in lines
    )
