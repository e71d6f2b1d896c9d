"""The forms in which images come: ImageNet's tars, parquet, a set prepared before, and a bucket."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.data.decode import decode_pixels
from nepa_jax.data.prepare.inspect import contact_sheet, inspect, verify
from nepa_jax.data.prepare.reencode import parse_reencode
from nepa_jax.data.prepare.split import prepare, prepare_arrays
from nepa_jax.data.records import open_dataset

WNIDS = ("n01440764", "n01443537", "n02119789")


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def tar_of(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files:
            add(archive, name, data)
    return out.getvalue()


@pytest.fixture
def imagenet(tmp_path, encode, picture):
    """ILSVRC2012 in small: a train tar of tars, a flat validation tar, and the devkit."""

    def image(seed):
        return encode(picture(seed), "JPEG")

    classes = [
        (f"{w}.tar", tar_of([(f"{w}_{i}.JPEG", image(10 * k + i)) for i in range(4)]))
        for k, w in enumerate(WNIDS)
    ]
    (tmp_path / "train.tar").write_bytes(tar_of(reversed(classes)))
    names = [f"ILSVRC2012_val_{k:08d}.JPEG" for k in range(1, 7)]
    (tmp_path / "val.tar").write_bytes(tar_of((n, image(50 + k)) for k, n in enumerate(names)))
    make_devkit(tmp_path / "devkit" / "data")
    truth = [WNIDS[k] for k in (2, 2, 0, 1, 0, 1)]
    lines = [f"{name} {wnid}\n" for name, wnid in zip(names, truth, strict=True)]
    (tmp_path / "val.txt").write_text("".join(lines))
    return tmp_path


def make_devkit(folder):
    """The devkit's own class numbers are not in the order of the WordNet ids."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    synsets = np.zeros((4, 1), [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    for row, (number, wnid) in enumerate(
        zip((1, 2, 3, 4), (*reversed(WNIDS), "n00001740"), strict=True)
    ):
        synsets[row, 0] = (np.array([[number]]), np.array([wnid]), np.array([[0]]))
    savemat(folder / "meta.mat", {"synsets": synsets})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n1\n3\n2\n3\n2\n")


def names_and_labels(path, split="train"):
    records = open_dataset(path, split)
    return {record.name: record.label for record in records.read(range(len(records)))}


def test_imagenet_train_tar(imagenet, tmp_path, capsys):
    entry = prepare(str(imagenet / "train.tar"), str(tmp_path / "out"), num_shards=2)
    assert entry["num_examples"] == 12 and entry["examples_per_class"] == [4, 4]
    found = names_and_labels(tmp_path / "out")
    assert found["n01443537/n01443537_3.JPEG"] == 1
    assert open_dataset(tmp_path / "out").classes == WNIDS
    said = capsys.readouterr().err
    assert "3 classes have WordNet ids" in said and "ImageNet has 1,281,167" in said


@pytest.mark.parametrize("labels", ["val.txt", "devkit", "devkit.tar.gz"])
def test_imagenet_validation_tar(imagenet, tmp_path, labels, capsys):
    with tarfile.open(imagenet / "devkit.tar.gz", "w:gz") as archive:
        archive.add(imagenet / "devkit", "ILSVRC2012_devkit_t12")
    out = str(tmp_path / "out")
    prepare(str(imagenet / "train.tar"), out)
    entry = prepare(str(imagenet / "val.tar"), out, "val", labels=str(imagenet / labels))
    assert entry["examples_per_class"] == [2, 2]
    found = names_and_labels(out, "val")
    assert found["n02119789/ILSVRC2012_val_00000001.JPEG"] == 2
    assert found["n01440764/ILSVRC2012_val_00000003.JPEG"] == 0
    assert found["n01443537/ILSVRC2012_val_00000006.JPEG"] == 1
    assert "2 to 2 images per class" in capsys.readouterr().err


def test_validation_images_without_labels_warn(imagenet, tmp_path, capsys):
    entry = prepare(str(imagenet / "val.tar"), str(tmp_path / "out"), "val")
    assert not entry["labelled"] and "give --labels" in capsys.readouterr().err


def test_wrong_label_files(imagenet, tmp_path):
    source, out = str(imagenet / "val.tar"), str(tmp_path / "out")
    (tmp_path / "short.txt").write_text("ILSVRC2012_val_00000001.JPEG n01440764\n")
    (tmp_path / "odd.txt").write_text("one two three\n")
    (tmp_path / "folder").mkdir()
    for name, words in (
        ("short.txt", "no class for 5 of 6 images"),
        ("odd.txt", "'one two three'"),
        ("folder", "holds no meta"),
        ("nothing", "does not exist"),
    ):
        with pytest.raises(UserError, match=words):
            prepare(source, out, "val", labels=str(tmp_path / name))


@pytest.fixture
def parquet(tmp_path, encode, picture):
    """Two train shards and a test shard as Hugging Face writes them."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    features = {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    folder = tmp_path / "hf" / "data"
    folder.mkdir(parents=True)
    for name, seeds in (
        ("train-00000-of-00002", range(5)),
        ("train-00001-of-00002", range(5, 9)),
        ("test-00000-of-00001", range(20, 22)),
    ):
        images = [{"bytes": encode(picture(i)), "path": f"{i}.png"} for i in seeds]
        table = pa.table({"image": images, "label": [i % 2 for i in seeds]})
        table = table.replace_schema_metadata(metadata)
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)
    return tmp_path / "hf"


def test_parquet(parquet, tmp_path, encode, picture):
    out = str(tmp_path / "out")
    assert prepare(str(parquet), out)["num_examples"] == 9
    assert prepare(str(parquet), out, "test")["num_examples"] == 2
    records = open_dataset(out)
    assert records.classes == ("zebra", "ant")  # the numbers of the source, not sorted anew
    for record in records.read(range(9)):
        seed = int(record.name.rsplit("/", 1)[1].split(".")[0])
        assert record.image == encode(picture(seed)) and record.label == seed % 2
    assert sorted(os.listdir(out)) == [
        "dataset.json",
        "test-00000-of-00001.array_record",
        "train-00000-of-00001.array_record",
    ]


def test_parquet_mistakes(parquet, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="no split 'val': choose --split from"):
        prepare(str(parquet), out, "val")
    pq.write_table(pa.table({"text": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="one must be named image"):
        prepare(str(tmp_path / "a.parquet"), out)
    (tmp_path / "b.parquet").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is no parquet file"):
        prepare(str(tmp_path / "b.parquet"), out)
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "x"}]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="only paths"):
        prepare(str(tmp_path / "c.parquet"), out)


def test_a_prepared_set_is_a_source(tree, tmp_path):
    first = prepare(str(tree), str(tmp_path / "a"))
    second = prepare(str(tmp_path / "a"), str(tmp_path / "b"), num_shards=3)
    assert first["fingerprint"] == second["fingerprint"]
    assert open_dataset(tmp_path / "b").classes == ("cat", "dog")


def test_reencoding(tmp_path, encode, picture):
    images = [
        (encode(picture(0, 600, 400), "PNG"), 0, "large.png"),
        (encode(picture(1, 30, 20), "JPEG", quality=20), 0, "small.jpg"),
        (encode(picture(2, 500, 500).convert("L"), "PNG"), 0, "gray.png"),
        (encode(picture(3, 500, 400), "JPEG")[:-60], 0, "cut.jpg"),
    ]
    prepare_arrays(images, str(tmp_path / "a"), classes=["x"])
    entry = prepare(str(tmp_path / "a"), str(tmp_path / "b"), reencode="short_side=100,quality=90")
    assert entry["reencode"] == {"short_side": 100, "quality": 90}
    assert [skipped["name"] for skipped in entry["skipped"]] == ["cut.jpg"]
    records = open_dataset(tmp_path / "b")
    found = {record.name: record.image for record in records.read(range(3))}
    large = Image.open(io.BytesIO(found["large.png"]))
    assert large.size == (150, 100) and large.format == "JPEG"
    assert found["small.jpg"] == images[1][0]  # no smaller at that quality
    assert Image.open(io.BytesIO(found["gray.png"])).mode == "L"
    expected = picture(0, 600, 400).resize((150, 100), Image.Resampling.BICUBIC)
    error = np.asarray(expected, float) - decode_pixels(found["large.png"])
    assert np.abs(error).mean() < 2


@pytest.mark.parametrize(
    "text", ["", "384", "short_side=384", "short_side=a,quality=90", "short_side=9,quality=101"]
)
def test_wrong_reencode_options(text):
    with pytest.raises(UserError, match="--reencode"):
        parse_reencode(text)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


SLOW_PREPARE = """
import sys, time
from nepa_jax.data.prepare import shards
from nepa_jax.data.prepare import split as prepare
load = shards._load
def slow(*args):
    time.sleep(0.2)
    return load(*args)
shards._load = slow
prepare.prepare(sys.argv[1], sys.argv[2], num_shards=6, num_threads=2)
"""


def test_a_killed_prepare_goes_on_where_it_stopped(tree, tmp_path):
    out = tmp_path / "here" / "out"
    process = subprocess.Popen([sys.executable, "-c", SLOW_PREPARE, str(tree), str(out)])
    deadline = time.monotonic() + 30
    while not list(out.glob(".prepare-train/*.done.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(UserError, match="no dataset"):
        open_dataset(out)
    notes = [note.name for note in out.glob(".prepare-train/*.done.json")]
    shards = [out / note.removesuffix(".done.json") for note in notes]
    kept = {shard: shard.stat().st_mtime_ns for shard in shards}
    prepare(str(tree), str(out), num_shards=6, num_threads=2)
    assert 0 < len(kept) < 6
    assert all(file.stat().st_mtime_ns == time_ns for file, time_ns in kept.items())
    prepare(str(tree), str(tmp_path / "there" / "out"), num_shards=6)
    assert contents(out) == contents(tmp_path / "there" / "out")


def test_another_plan_starts_over(tree, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("nepa_jax.data.prepare.store.Store.put_manifest", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(str(tree), str(out), num_shards=5)
    monkeypatch.undo()
    prepare(str(tree), str(out), num_shards=2)
    assert len(os.listdir(out)) == 3  # nothing of the five shards is left


def test_two_at_a_time_are_refused(tree, tmp_path, monkeypatch):
    out = str(tmp_path / "out")

    def again(*_):
        prepare(str(tree), out)

    monkeypatch.setattr("nepa_jax.data.prepare.store.Store.put_manifest", again)
    with pytest.raises(UserError, match="another process prepares"):
        prepare(str(tree), out)


def test_a_bucket_gets_finished_shards(tree, tmp_path):
    import fsspec

    out = f"memory://{tmp_path.name}/set"
    prepare(str(tree), out, num_shards=3)
    prepare(str(tree), out, "test")
    with pytest.raises(UserError, match="already has"):
        prepare(str(tree), out)
    with pytest.raises(UserError, match="mount it"):
        open_dataset(out)
    local = tmp_path / "set"
    fsspec.filesystem("memory").get(out, str(local), recursive=True)
    prepare(str(tree), str(tmp_path / "other" / "set"), num_shards=3)
    prepare(str(tree), str(tmp_path / "other" / "set"), "test")
    assert contents(local) == contents(tmp_path / "other" / "set")


def test_a_bucket_that_fails_halfway(tree, tmp_path, monkeypatch):
    from fsspec.implementations.memory import MemoryFileSystem

    out, put = f"memory://{tmp_path.name}/set", MemoryFileSystem.put_file
    calls = []

    def flaky(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise OSError("quota exceeded")
        return put(*args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "put_file", flaky)
    with pytest.raises(UnavailableError, match=r"cannot write memory://.*quota"):
        prepare(str(tree), out, num_shards=4, num_threads=1)
    assert prepare(str(tree), out, num_shards=4, num_threads=1)["num_examples"] == 12
    assert len(calls) == 6  # two shards were not sent again


def test_unknown_targets(tree):
    with pytest.raises(UserError, match="cannot reach --out=nowhere"):
        prepare(str(tree), "nowhere://bucket/set")


def test_contact_sheet(prepared, tmp_path):
    contact_sheet(prepared, str(tmp_path / "sheet.png"))
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.format == "PNG" and min(sheet.size) > 100


def test_inspect_and_verify_know_all_splits(tree, tmp_path):
    out = str(tmp_path / "out")
    prepare(str(tree), out)
    prepare(str(tree), out, "test")
    assert inspect(out)["splits"]["train"]["examples_per_class"] == [6, 6]
    assert verify(out) == {"train": [], "test": []}
    shutil.rmtree(out)
