"""What is told of a set, and of what is wrong in it: bounded, and without others' escape sequences."""

import json
from pathlib import Path

import msgpack
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from nepa_jax.cli import main
from nepa_jax.data.batches import BadRecord
from nepa_jax.data.loader import Loader, LoaderConfig, iter_epoch
from nepa_jax.data.manifest import MANIFEST
from nepa_jax.data.prepare.inspect import LISTED, contact_sheet, inspect, named, verify
from nepa_jax.data.prepare.split import prepare, prepare_arrays
from nepa_jax.data.records import open_dataset

EVIL = "\x1b]0;owned\x07\n"


@pytest.fixture
def write_set(tmp_path, prepared):
    """Writes a set like `prepared`, with other records in front of its 50."""

    def write(odd):
        folder, records = tmp_path / "set", open_dataset(prepared)
        folder.mkdir()
        manifest = json.loads(Path(prepared, MANIFEST).read_text())
        entry = manifest["splits"]["train"]
        (shard,) = entry["shards"]
        writer = ArrayRecordWriter(str(folder / shard["file"]), "group_size:1,uncompressed")
        good = [
            msgpack.packb({"image": r.image, "label": r.label, "name": r.name})
            for r in records.read(range(50))
        ]
        for data in [*odd, *good, bytes(1 << 16)]:
            writer.write(data)
        writer.close()
        shard["bytes"] = (folder / shard["file"]).stat().st_size
        shard["num_records"] = entry["num_examples"] = len(odd) + 50
        (folder / MANIFEST).write_text(json.dumps(manifest))
        return str(folder)

    return write


IMAGE = b"\x89PNG damaged"

ODD = {
    "label is text": {"image": IMAGE, "label": "cat", "name": "x"},
    "label beyond the classes": {"image": IMAGE, "label": 999, "name": "x"},
    "label beyond int32": {"image": IMAGE, "label": 1 << 40, "name": "x"},
    "label is missing": {"image": IMAGE, "name": "x"},
    "image is a number": {"image": 5, "label": 1, "name": "x"},
    "name is no text": {"image": IMAGE, "label": 1, "name": 7},
    "no map": [1, 2],
}


@pytest.mark.trial
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_an_odd_record_is_bad_for_every_reader(write_set, odd, tmp_path, capsys):
    path = write_set([msgpack.packb(odd)] * 2)
    assert inspect(path)["splits"]["train"]["images"]["unreadable"] == 2
    assert [bad.index for bad in verify(path)["train"]] == [0, 1]
    assert [bad.index for bad in contact_sheet(path, str(tmp_path / "sheet.png"))] == [0, 1]
    assert prepare(path, str(tmp_path / "again"))["num_examples"] == 50
    assert "2 of 52 records are left out, such as record 0" in capsys.readouterr().err
    config = LoaderConfig(path, image_size=(8, 8), batch_size=52, num_threads=2, max_bad_rate=1.0)
    with Loader(config) as loader:
        index = loader.made(0).account.index
        assert loader.stats()["data/substitutes"] == 2 and index.min() >= 2
        assert (loader.shown(0, 1000) == index).all()  # and not what was to be shown
    assert "warning: 2 of 52 examples could not be decoded" in capsys.readouterr().err


@pytest.mark.trial
def test_bad_records_are_told_when_they_are_the_first_and_the_tenth(write_set, capsys):
    path = write_set([b"odd"] * 12)
    config = LoaderConfig(path, image_size=(8, 8), batch_size=2, num_threads=1, max_bad_rate=1.0)
    list(iter_epoch(LoaderConfig(**{**vars(config), "crop": "center", "flip": False})))
    told = capsys.readouterr().err.splitlines()
    assert [line.split(" examples")[0] for line in told] == ["warning: 2 of 2", "warning: 10 of 10"]
    assert all("nepa-jax data verify" in line for line in told)


@pytest.mark.trial
def test_many_bad_records_are_few_lines(write_set, capsys):
    path = write_set([b"odd"] * 30 + [msgpack.packb(ODD["label beyond the classes"])] * 40)
    run("verify", path, code=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "train: 70 bad records"
    assert len(lines) == 1 + LISTED + 2
    assert lines[-2:] == [
        "  in all 40: label N in a set of N classes",
        "  in all 30: not a record of this format",
    ]
    run("verify", path, "--json", code=1)
    assert len(json.loads(capsys.readouterr().out)["train"]) == 70


def test_a_bounded_list_says_how_many_there_are():
    bad = [BadRecord(i, "x", f"block {i} (0x{i:x})") for i in range(30)]
    assert named(bad[:5]) == [str(record) for record in bad[:5]]
    assert named(bad, 2) == [str(bad[0]), str(bad[1]), "in all 30: block N"]


@pytest.mark.trial
def test_names_of_others_do_not_reach_the_terminal(tmp_path, capsys, encode, picture):
    path, sheet = str(tmp_path / "set"), str(tmp_path / "sheet.png")
    images = [(encode(picture(i)), i % 2, f"{i}{EVIL}") for i in range(4)]
    images.append((images[0][0][:-40], 1, f"cut{EVIL}"))
    prepare_arrays(images, path, classes=[EVIL, "\udcff"])
    for verb, code in (("inspect", 0), ("verify", 1), ("sheet", 0)):
        run(verb, path, *([f"--out={sheet}"] if verb == "sheet" else []), code=code)
        out = "".join(capsys.readouterr())
        assert "\x1b" not in out and "\x07" not in out and "\udcff" not in out, verb
        assert verb == "sheet" or r"\x1b]0;owned\x07\n" in out
    assert Image.open(sheet).width == 8 * 112


@pytest.mark.trial
def test_the_sheet_says_where_it_is_and_what_is_black(write_set, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    run("sheet", write_set([b"odd"]), f"--out={sheet}")
    black, done = capsys.readouterr().out.splitlines()
    assert "stays black: record 0" in black and done == f"done: {sheet}"


def run(*words, code=0):
    try:
        main(["data", *words])
    except SystemExit as error:
        assert error.code == code
    else:
        assert code == 0
