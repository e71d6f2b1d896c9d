"""Parquet files as the hub and others write them: splits, subsets, columns, labels, damage."""

import json
import sys

import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.data.prepare.parquet import is_parquet, open_parquet

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def write(tmp_path, encode, picture):
    """Writes files, by their paths: bytes as they are, a dict of columns as parquet with images."""
    pictures = [encode(picture(seed, 4, 4)) for seed in range(3)]

    def run(files):
        for name, contents in files.items():
            file = tmp_path / "source" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(contents, bytes):
                file.write_bytes(contents)
                continue
            columns = {key: value for key, value in contents.items() if key != "features"}
            count = max(map(len, columns.values()), default=3)
            images = [{"bytes": pictures[i % 3], "path": f"{i}.png"} for i in range(count)]
            table = pa.table({"image": images} | columns)
            if features := contents.get("features"):
                text = json.dumps({"info": {"features": features}})
                table = table.replace_schema_metadata({"huggingface": text})
            pq.write_table(table, file, row_group_size=2)
        return tmp_path / "source"

    return run


@pytest.fixture
def read(write, tmp_path):
    """Writes files and lists a split: (files by number of images, labels, classes, left out)."""

    def run(files, split="train", below="."):
        root = write(files)
        with open_parquet(root / below, split, tmp_path) as listing:
            names = [example.name.split("/")[0] for example in listing.examples]
            assert all(example.read().startswith(b"\x89PNG") for example in listing.examples)
            labels = [example.label for example in listing.examples]
            return (
                {name: names.count(name) for name in names},
                labels,
                listing.classes,
                listing.left_out.lines(),
            )

    return run


def test_the_images_are_those_of_the_rows(write, tmp_path, encode, picture):
    root = write({"a.parquet": {"label": [2, 0, 1]}})
    with open_parquet(root, "train", tmp_path) as listing:
        for number, example in enumerate(listing.examples):
            assert example.read() == encode(picture(number, 4, 4))
            assert example.name == f"a/{number}/{number}.png"
    assert [example.label for example in listing.examples] == [2, 0, 1]


ONE, TWO = {"label": [0, 1, 1]}, {"label": [0, 1]}


@pytest.mark.trial
@pytest.mark.parametrize(
    ("wanted", "other"),
    [
        ("train.parquet", "test.parquet"),
        ("data/train.parquet", "data/validation.parquet"),
        ("TRAIN.parquet", "Test.parquet"),
        ("train2017.parquet", "val2017.parquet"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        (
            "train-00000-of-00001-0a1b2c3d4e5f6071.parquet",
            "test-00000-of-00001-0a1b2c3d4e5f6072.parquet",
        ),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-test/0000.parquet"),
        ("train/part-0.parquet", "test/part-0.parquet"),
        ("cats_train.parquet", "cats_test.parquet"),
        ("train_0.parquet", "extra-00000-of-00001.parquet"),
        ("train.parquet", "metadata.parquet"),
    ],
)
def test_a_split_has_its_files_alone(read, wanted, other):
    files, labels, _, _ = read({wanted: ONE, other: TWO})
    assert list(files.values()) == [3] and labels == [0, 1, 1]


@pytest.mark.trial
def test_a_split_is_found_by_its_meaning_and_told(read, capsys):
    files, *_ = read({"validation-00000-of-00001.parquet": ONE, "train.parquet": TWO}, "val")
    assert files == {"validation-00000-of-00001": 3}
    assert "split 'val' is read from validation" in capsys.readouterr().err


def test_files_without_a_split_are_one_set(read):
    files, labels, classes, _ = read({"00000.parquet": ONE, "00001.parquet": TWO})
    assert files == {"00000": 3, "00001": 2} and labels == [0, 1, 1, 0, 1] and classes == ("0", "1")


@pytest.mark.trial
@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["test.parquet", "validation.parquet"], "no split 'train': choose --split from"),
        (
            ["train2014.parquet", "train2017.parquet"],
            "more than one set of files for split 'train'",
        ),
        (
            ["fine/train.parquet", "coarse/train.parquet"],
            r"2 subsets side by side \(coarse, fine\)",
        ),
        (["a/0.parquet", "b/0.parquet"], r"2 subsets side by side \(a, b\)"),
        (["train.parquet", "x/train.parquet"], r"subsets side by side \(files in no folder, x\)"),
        (["label=cat/0.parquet", "label=dog/0.parquet"], "2 subsets side by side"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "several uploads"),
    ],
)
def test_what_would_merge_is_refused(read, files, words):
    with pytest.raises(UserError, match=words):
        read(dict.fromkeys(files, ONE))


def test_one_of_the_subsets_can_be_given(read):
    files = {"fine/train.parquet": ONE, "coarse/train.parquet": TWO}
    assert read(files, below="fine")[0] == {"train": 3}


@pytest.mark.trial
@pytest.mark.parametrize(
    "name",
    ["label", "labels", "Label", "fine_label", "class", "class_id", "category", "target", "y"],
)
def test_the_label_column_has_many_names(read, name):
    assert read({"a.parquet": {name: [0, 2, 1]}})[1] == [0, 2, 1]


@pytest.mark.trial
def test_names_of_the_classes(read):
    features = {"kind": {"_type": "ClassLabel", "names": ["zebra", "ant"]}}
    _, labels, classes, _ = read({"a.parquet": {"kind": [1, 0, 1], "features": features}})
    assert labels == [1, 0, 1] and classes == ("zebra", "ant")


@pytest.mark.trial
def test_the_chosen_label_column_is_told(read, capsys):
    assert read({"a.parquet": {"coarse_label": [0, 0, 0], "fine_label": [0, 1, 2]}})[1] == [0, 1, 2]
    assert "classes are read from the column 'fine_label'" in capsys.readouterr().err


@pytest.mark.trial
@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        ([0, None, 1, -1], [0, 1], ("0", "1")),
        ([0.0, 2.0, float("nan"), 1.0], [0, 2, 1], ("0", "1", "2")),
        (["dog", "cat", "", None], [1, 0], ("cat", "dog")),
        ([b"dog", b"cat", b"dog"], [1, 0, 1], ("cat", "dog")),
        ([True, False, True], [1, 0, 1], ("0", "1")),
        (["10", "2", "10"], [1, 0, 1], ("2", "10")),
        ([70_000_000, 5, 5], [1, 0, 0], ("5", "70000000")),
        (["cafe\u0301", "caf\u00e9", "tea"], [0, 0, 1], ("caf\u00e9", "tea")),
    ],
)
def test_the_values_of_labels(read, values, labels, classes):
    _, found, names, lines = read({"a.parquet": {"label": values}})
    assert (found, names) == (labels, classes)
    missing = len(values) - len(labels)
    assert not missing or lines[0].startswith(f"rows without a label: {missing}, such as a/")


@pytest.mark.trial
def test_labels_as_a_dictionary(read):
    values = pa.array(["dog", "cat", "dog"]).dictionary_encode()
    assert read({"a.parquet": {"label": values}})[1:3] == ([1, 0, 1], ("cat", "dog"))


@pytest.mark.trial
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"caption": ["x", "y", "z"]}, "none of the columns ['caption']"),
        ({"label": [None, None]}, "no row has a value in 'label'"),
        ({"label": [-1, -1]}, "no row has a value in 'label'"),
        ({"label": [f"id{i}" for i in range(30)]}, "nearly as many values as there are images"),
        ({"label": [10**9 + i for i in range(30)]}, "nearly as many values as there are images"),
    ],
)
def test_unlabelled_images_are_told(read, capsys, columns, words):
    _, labels, classes, _ = read({"a.parquet": columns})
    assert set(labels) == {None} and classes == ()
    assert words in capsys.readouterr().err


@pytest.mark.trial
@pytest.mark.parametrize("values", [[[0], [1, 2]], [{"a": 1}, {"a": 2}], [0.5, 1.0]])
def test_labels_that_are_no_classes_are_refused(read, values):
    with pytest.raises(UserError, match="each image must have one class"):
        read({"a.parquet": {"label": values}})


@pytest.mark.trial
def test_a_label_beyond_the_names_is_left_out(read):
    features = {"label": {"names": ["a", "b"]}}
    _, labels, _, lines = read({"a.parquet": {"label": [0, 7, 1], "features": features}})
    assert labels == [0, 1]
    assert lines == ["rows with a label that has no class name: 1, such as a/1/1.png"]


@pytest.mark.trial
@pytest.mark.parametrize(
    "text", [b"[[[", b"[]", b'{"info": null}', b'{"info": {"features": [1]}}', b"\xff"]
)
def test_damaged_words_about_the_columns_are_none(read, write, text):
    root = write({"a.parquet": ONE})
    table = pq.read_table(root / "a.parquet").replace_schema_metadata({"huggingface": text})
    pq.write_table(table, root / "a.parquet")
    assert read({})[1] == [0, 1, 1]


@pytest.mark.trial
@pytest.mark.parametrize("name", ["image", "img", "jpg", "picture", "image_bytes", "anything"])
def test_the_image_column_has_many_names(tmp_path, encode, picture, name):
    table = pa.table({name: [encode(picture(0))], "size": [1]})
    pq.write_table(table, tmp_path / "a.parquet")
    with open_parquet(tmp_path / "a.parquet", "train", tmp_path) as listing:
        assert listing.examples[0].read() == encode(picture(0))


@pytest.mark.trial
@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"image": ["a.jpg"]}, "holds in 'image' no image bytes, only paths"),
        ({"image": [{"bytes": None, "path": "a.jpg"}]}, "no image bytes, only paths"),
        ({"image": [[{"bytes": b"x", "path": "a.jpg"}]]}, "holds in 'image' no image bytes"),
        ({"text": ["a"]}, r"columns \['text'\]: one must be named image"),
        ({"left": [b"x"], "right": [b"y"]}, "one must be named image"),
        ({"image": pa.array([], pa.binary())}, r"no images in .* \(no rows\)"),
        ({"image": pa.array([None], pa.binary())}, r"no images in .* \(rows without an image: 1"),
    ],
)
def test_files_without_images_are_refused(write, tmp_path, columns, words):
    root = write({})
    root.mkdir()
    pq.write_table(pa.table(columns), root / "a.parquet")
    with pytest.raises(UserError, match=words), open_parquet(root, "train", tmp_path):
        pass


@pytest.mark.trial
def test_rows_without_an_image_are_left_out(read, encode, picture):
    good = {"bytes": encode(picture(0)), "path": None}
    images = [good, None, {"bytes": None, "path": None}, {"bytes": b"", "path": "x.jpg"}, good]
    _, labels, _, lines = read({"a.parquet": {"image": images, "label": [0, 1, 2, 3, 4]}})
    assert labels == [0, 4]
    assert lines == [
        "rows without an image: 2, such as a/1, a/2",
        "rows with the path of an image, without its bytes: 1, such as a/3",
    ]


@pytest.mark.trial
def test_damaged_files_never_stop_the_others(read, write):
    half = (write({"b.parquet": ONE}) / "b.parquet").read_bytes()[:300]
    features = {"label": {"names": ["b", "a"]}}
    files = {"a.parquet": b"nothing", "b.parquet": half, "c.parquet": b"", "d.parquet": ONE}
    _, labels, _, lines = read(files | {"e.parquet": ONE | {"features": features}})
    assert labels == [0, 1, 1]
    assert lines[0].startswith("parquet files that are damaged (fetch them again): 3, such as /")
    assert lines[1].startswith("parquet files with other columns, or other names of the classes: 1")


@pytest.mark.trial
def test_damaged_rows_never_stop_the_others(read, write):
    file = write({"a.parquet": {"label": list(range(10))}}) / "a.parquet"
    data = bytearray(file.read_bytes())
    offset = pq.ParquetFile(file).metadata.row_group(2).column(0).data_page_offset
    data[offset : offset + 12] = b"\xff" * 12
    _, labels, _, lines = read({"a.parquet": bytes(data)})
    assert labels == [0, 1, 2, 3, 6, 7, 8, 9]
    assert lines[0].startswith("rows in damaged parts of parquet files (fetch them again): 2")


@pytest.mark.trial
def test_a_missing_shard_is_told(read):
    *_, lines = read({"train-00001-of-00004.parquet": ONE})
    assert lines == ["parquet files that are missing (fetch them): 3, such as train-00000-of-00004"]


@pytest.mark.trial
def test_what_is_a_source_of_parquet(write, tmp_path):
    root = write({"train.parquet": ONE, "assets/logo.png": b"x", "blob": b"PAR1 and more"})
    assert is_parquet(root) and is_parquet(root / "train.parquet") and is_parquet(root / "blob")
    (tmp_path / "folder" / "cat").mkdir(parents=True)
    (tmp_path / "folder" / "cat" / "1.jpg").write_bytes(b"")
    assert not is_parquet(tmp_path / "folder")
    pq.write_table(pa.table({"file": ["1.jpg"]}), tmp_path / "folder" / "metadata.parquet")
    assert not is_parquet(tmp_path / "folder")


@pytest.mark.trial
def test_without_pyarrow_the_extra_is_named(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'nepa-jax\[parquet\]'"):
        read({"a.parquet": b"PAR1"})
