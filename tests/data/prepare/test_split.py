import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import msgpack
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from nepa_jax.base.errors import UserError
from nepa_jax.data.prepare.inspect import inspect, verify
from nepa_jax.data.prepare.split import MIB, default_num_shards, prepare, prepare_arrays
from nepa_jax.data.records import open_dataset


def fingerprint(source, out, **options):
    return prepare(str(source), str(out), **options)["fingerprint"]


def test_splits_add_up_and_share_classes(tree, tmp_path):
    out = tmp_path / "out"
    train = prepare(str(tree), str(out), "train")
    assert (train["num_examples"], train["num_ignored"], train["num_skipped"]) == (
        12,
        3,
        0,
    )  # notes, a hidden file, __MACOSX
    prepare(str(tree), str(out), "test")
    manifest = json.loads((out / "dataset.json").read_text())
    assert manifest["classes"] == ["cat", "dog"]
    assert manifest["splits"]["test"]["num_examples"] == 4
    assert sorted(os.listdir(out)) == [
        "dataset.json",
        "test-00000-of-00001.array_record",
        "train-00000-of-00001.array_record",
    ]


def test_records_hold_the_original_bytes(tree, tmp_path):
    prepare(str(tree), str(tmp_path / "out"))
    records = open_dataset(tmp_path / "out")
    names = [record.name for record in records.read(range(len(records)))]
    assert sorted(names) == sorted(f"{c}/{i}.JPEG" for c in ("cat", "dog") for i in range(6))
    assert names != sorted(names)
    for record in records.read([3, 0, 11]):
        assert record.image == (tree / "train" / record.name).read_bytes()
        assert record.label == ["cat", "dog"].index(record.name.split("/")[0])


def test_a_record_is_a_plain_msgpack_map(tree, tmp_path):
    shard = prepare(str(tree), str(tmp_path / "out"))["shards"][0]
    reader = ArrayRecordReader(str(tmp_path / "out" / shard["file"]))
    fields = msgpack.unpackb(reader.read([0])[0])
    assert set(fields) == {"image", "label", "name"}


def test_every_kind_of_source_gives_the_same_records(tree, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(tree.rglob("*"), reverse=True):
            archive.write(file, f"wrapped/{file.relative_to(tree)}")
    for suffix in ("tar", "tar.gz", "tar.xz"):
        with tarfile.open(tmp_path / f"a.{suffix}", f"w:{suffix[4:]}") as archive:
            archive.add(tree, ".")
    expected = fingerprint(tree, tmp_path / "folder")
    for name in ("a.zip", "a.tar", "a.tar.gz", "a.tar.xz"):
        assert fingerprint(tmp_path / name, tmp_path / f"out-{name}") == expected, name
    assert fingerprint(tree / "train", tmp_path / "inside") == expected
    assert fingerprint(tree, tmp_path / "shards", num_shards=5, num_threads=1) == expected


def test_the_fingerprint_sees_pixels_and_labels(tree, tmp_path):
    before = fingerprint(tree, tmp_path / "a")
    (tree / "train" / "cat").rename(tree / "train" / "elk")
    renamed = fingerprint(tree, tmp_path / "b")
    (tree / "train" / "dog" / "0.JPEG").write_bytes(
        (tree / "train" / "dog" / "1.JPEG").read_bytes()
    )
    assert len({before, renamed, fingerprint(tree, tmp_path / "c")}) == 3


def test_preparing_twice_writes_the_same_files(tree, tmp_path):
    for name in "ab":
        prepare(str(tree), str(tmp_path / name), num_shards=3)
    for file in os.listdir(tmp_path / "a"):
        a, b = ((tmp_path / name / file).read_bytes() for name in "ab")
        assert a == b or file == "dataset.json"


def test_shards_hold_everything_once(tree, tmp_path):
    entry = prepare(str(tree), str(tmp_path / "out"), num_shards=5)
    assert [shard["num_records"] for shard in entry["shards"]] == [2, 2, 3, 2, 3]
    records = open_dataset(tmp_path / "out")
    assert len({records[i].name for i in range(12)}) == 12
    with pytest.raises(IndexError):
        records[12]


def test_a_flat_folder_is_unlabelled(tmp_path, encode, picture):
    (tmp_path / "flat").mkdir()
    for index in range(3):
        (tmp_path / "flat" / f"{index}.png").write_bytes(encode(picture(index)))
    entry = prepare(str(tmp_path / "flat"), str(tmp_path / "out"))
    assert not entry["labelled"]
    records = open_dataset(tmp_path / "out")
    assert records[0].label is None and records.num_classes == 0


def test_classes_named_like_a_split_are_classes(tmp_path, encode, picture):
    for name in ("bus", "train"):
        (tmp_path / "voc" / name).mkdir(parents=True)
        (tmp_path / "voc" / name / "0.png").write_bytes(encode(picture(0)))
    prepare(str(tmp_path / "voc"), str(tmp_path / "out"))
    assert open_dataset(tmp_path / "out").classes == ("bus", "train")


def test_unreadable_images_are_left_out_and_listed(tree, tmp_path):
    (tree / "train" / "cat" / "empty.jpg").write_bytes(b"")
    (tree / "train" / "cat" / "text.jpg").write_bytes(b"<html>not found</html>")
    entry = prepare(str(tree), str(tmp_path / "out"))
    assert (entry["num_examples"], entry["num_skipped"]) == (12, 2)
    assert {s["name"]: s["reason"] for s in entry["skipped"]} == {
        "cat/empty.jpg": "the file is empty",
        "cat/text.jpg": "not a known image format",
    }


def test_default_number_of_shards():
    assert default_num_shards(MIB, 1000) == 1
    assert default_num_shards(100 * MIB, 10_000) == 12
    assert default_num_shards(100 * MIB, 4) == 4
    assert default_num_shards(10_000 * MIB, 100_000) == 64
    assert default_num_shards(140_000 * MIB, 1_281_167) == 546
    assert default_num_shards(10_000_000 * MIB, 10**8) == 1024


def test_a_failure_leaves_no_set_behind_and_can_be_taken_up(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("nepa_jax.data.prepare.store.Store.put_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(str(tree), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "dataset.json").exists()
    monkeypatch.undo()
    prepare(str(tree), str(tmp_path / "out"))
    assert len(open_dataset(tmp_path / "out")) == 12
    assert not any(name.startswith(".") for name in os.listdir(tmp_path / "out"))


def test_mistakes_name_the_value_and_the_remedy(tree, tmp_path, encode, picture):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        prepare(str(tmp_path / "nowhere"), out)
    with pytest.raises(UserError, match="choose --split from test, train"):
        prepare(str(tree), out, "val")
    with pytest.raises(UserError, match="--shards=13"):
        prepare(str(tree), out, num_shards=13)
    with pytest.raises(UserError, match="plain word"):
        prepare(str(tree), out, "../train")
    prepare(str(tree), out)
    with pytest.raises(UserError, match="already has a split 'train', of other images or with"):
        prepare(str(tree), out, num_shards=2)
    (tree / "test" / "dog").rename(tree / "test" / "eel")
    with pytest.raises(UserError, match="other classes"):
        prepare(str(tree), out, "test")


def test_sources_without_usable_images(tree, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no images"):
        prepare(str(tmp_path / "empty"), str(tmp_path / "out"))
    (tmp_path / "empty" / "a.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of 1 images is usable: a\.jpg"):
        prepare(str(tmp_path / "empty"), str(tmp_path / "out"))
    assert os.listdir(tmp_path / "out") == []
    (tmp_path / "odd.tar").write_bytes(b"nothing like a tar")
    with pytest.raises(UserError, match="neither a folder, a zip nor a tar"):
        prepare(str(tmp_path / "odd.tar"), str(tmp_path / "out"))
    for index in range(13):
        (tree / "train" / f"loose{index:02d}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"outside of the class folders, such as train/loose00"):
        prepare(str(tree), str(tmp_path / "out"))


def test_an_unwritable_out(tree, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        prepare(str(tree), str(tmp_path / "file" / "out"))


def test_a_full_disk_is_an_error(tree, tmp_path):
    code = (
        "import resource, sys; from nepa_jax.data.prepare.split import prepare;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY));"
        "prepare(*sys.argv[1:])"
    )
    arguments = [sys.executable, "-c", code, str(tree), str(tmp_path / "out")]
    run = subprocess.run(arguments, capture_output=True, text=True)
    assert "UserError: cannot write" in run.stderr and "File too large" in run.stderr
    assert os.listdir(tmp_path / "out") == []


def test_a_broken_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a/b.jpg", b"x" * 1000)
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data[:100] + data[600:])
    with pytest.raises(UserError, match=r"damaged|none of 1 images"):
        prepare(str(tmp_path / "a.zip"), str(tmp_path / "out"))


def test_arrays_must_be_labelled_alike(tmp_path, encode, picture):
    data = encode(picture(0))
    for images, classes in (
        ([(data, None, "a"), (data, 0, "b")], ["x"]),
        ([(data, 1, "a")], ["x"]),
        ([(data, 0, "a")], []),
        ([], []),
    ):
        with pytest.raises(UserError):
            prepare_arrays(images, str(tmp_path / "out"), classes=classes)


def test_opening_what_is_not_there(prepared, tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no dataset\.json"):
        open_dataset(tmp_path)
    with pytest.raises(UserError, match="no split 'val': choose one of train"):
        open_dataset(prepared, "val")
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="prepare it again"):
        open_dataset(tmp_path)


def test_missing_and_truncated_shards(prepared, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    shard = next(copy.glob("*.array_record"))
    os.truncate(shard, shard.stat().st_size - 1)
    with pytest.raises(UserError, match="bytes instead of"):
        open_dataset(copy)
    shard.unlink()
    with pytest.raises(UserError, match="is missing"):
        open_dataset(copy)


def test_inspect_and_verify(tmp_path, encode, picture):
    images = [(encode(picture(i, 64, 64), "JPEG"), i % 2, f"{i}.jpg") for i in range(6)]
    images[4] = (images[4][0][:-300], 0, "cut.jpg")
    prepare_arrays(images, str(tmp_path), classes=["x", "y"])
    summary = inspect(str(tmp_path))
    assert summary["num_classes"] == 2
    assert summary["splits"]["train"]["images"]["width"] == {"min": 64, "median": 64, "max": 64}
    (bad,) = verify(str(tmp_path))["train"]
    assert bad.name == "cut.jpg" and "truncated" in bad.reason
    assert open_dataset(tmp_path)[bad.index].name == "cut.jpg"
    assert np.all([b.name == "cut.jpg" for b in verify(str(tmp_path), "train")["train"]])
