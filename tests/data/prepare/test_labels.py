"""Label files as people have them: which image has which class, and what is refused."""

import re
import sys
import zipfile

import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.data.prepare.labels import by_labels
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.members import File
from nepa_jax.data.prepare.split import prepare, prepare_arrays

ABC = ("a.jpg", "b.jpg", "c.jpg")
CAMS = ("cam1/0.jpg", "cam1/1.jpg", "cam2/0.jpg", "cam2/1.jpg")
CAT_DOG_CAT = {"a.jpg": "cat", "b.jpg": "dog", "c.jpg": "cat"}
CATS_AND_DOGS = {path: "cat" if "cam1" in path else "dog" for path in CAMS}


@pytest.fixture
def label(tmp_path):
    """Labels images by a file of the given contents: (class by path, classes, lines left out)."""

    def run(images, contents, name="labels.csv", source="source"):
        file, root = tmp_path / name, tmp_path / source
        root.mkdir(exist_ok=True)
        file.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        files = [File(path, tuple(path.split("/")), 1, bytes) for path in images]
        left_out = LeftOut()
        listing = by_labels(files, file, root, tmp_path, left_out)
        names = [example.name.split("/", 1) for example in listing.examples]
        labels = [listing.classes[example.label] for example in listing.examples]
        assert [name for name, _ in names] == labels
        found = {path: name for name, path in names}
        return found, listing.classes, left_out.lines()

    return run


@pytest.mark.trial
@pytest.mark.parametrize(
    "contents",
    [
        "a.jpg,cat\nb.jpg,dog\nc.jpg,cat\n",
        "a.jpg, cat\r\nb.jpg, dog\r\nc.jpg, cat",
        "a.jpg,cat\rb.jpg,dog\rc.jpg,cat\r",
        "a.jpg\tcat\nb.jpg\tdog\nc.jpg\tcat\n",
        "a.jpg;cat\nb.jpg;dog\nc.jpg;cat\n",
        "a.jpg|cat\nb.jpg|dog\nc.jpg|cat\n",
        "  a.jpg   cat\n\nb.jpg\tdog  \nc.jpg cat\n",
        '"a.jpg","cat"\n"b.jpg","dog"\n"c.jpg","cat"\n',
        "cat,a.jpg\ndog,b.jpg\ncat,c.jpg\n",
        "a,cat\nb,dog\nc,cat\n",
        "A.JPG,cat\nb.png,dog\nC,cat\n",
        "./a.jpg,cat\n./b.jpg,dog\n./c.jpg,cat\n",
        "a.jpg,cat\na.jpg,cat\nb.jpg,dog\nc.jpg,cat\n",
        "image,label\na.jpg,cat\nb.jpg,dog\nc.jpg,cat\n",
        "Bild,Tier\na.jpg,cat\nb.jpg,dog\nc.jpg,cat\n",
        "image_id,label\na,cat\nb,dog\nc,cat\n",
        ",filename,class\n0,a.jpg,cat\n1,b.jpg,dog\n2,c.jpg,cat\n",
        "filename,width,height,class,xmin\na.jpg,9,9,cat,0\na.jpg,9,9,cat,5\nb.jpg,9,9,dog,0\nc.jpg,9,9,cat,4\n",
        "ImageId,PredictionString\na,cat 1 2 3 4 cat 5 6 7 8 \nb,dog 1 2 3 4 \nc,cat 1 2 3 4 \n",
        "a.jpg\tcat\t0\t32\t44\t62\nb.jpg\tdog\t52\t55\t57\t59\nc.jpg\tcat\t4\t0\t60\t55\n",
        "\ufeffimage,label\na.jpg,cat\nb.jpg,dog\nc.jpg,cat\n",
        "\ufeffimage\tlabel\r\na.jpg\tcat\r\nb.jpg\tdog\r\nc.jpg\tcat\r\n".encode("utf-16-le"),
        "image;label\na.jpg;cat\nb.jpg;dog\nc.jpg;cat\n".encode("utf-16"),
    ],
)
def test_a_table_is_read_as_it_comes(label, contents):
    found, classes, lines = label(ABC, contents)
    assert found == CAT_DOG_CAT and classes == ("cat", "dog") and not lines


@pytest.mark.trial
@pytest.mark.parametrize(
    "root", ["", "cams/", "/kaggle/input/cams/", "C:\\data\\cams\\", "./", "source/"]
)
def test_images_of_one_name_are_told_apart_by_their_folders(label, root):
    rows = "".join(f"{root}{path},{name}\n" for path, name in CATS_AND_DOGS.items())
    if "\\" in root:
        rows = rows.replace("/", "\\")
    assert label(CAMS, rows) == (CATS_AND_DOGS, ("cat", "dog"), [])


@pytest.mark.trial
def test_a_folder_of_the_source_counts_as_one_of_the_path(label):
    rows = "".join(f"{path},{name}\n" for path, name in CATS_AND_DOGS.items())
    found, _, lines = label(("0.jpg", "1.jpg"), rows, source="cam2")
    assert found == {"0.jpg": "dog", "1.jpg": "dog"}
    assert lines == [
        "lines of --labels for images that are not there: 2, such as cam1/0.jpg, cam1/1.jpg"
    ]


@pytest.mark.trial
@pytest.mark.parametrize(
    ("images", "rows", "words"),
    [
        (
            CAMS,
            "0.jpg,cat\n1.jpg,cat\n",
            "one line 0.jpg for two images, cam1/0.jpg and cam2/0.jpg",
        ),
        (CAMS, "0.jpg,cat\n1.jpg,cat\n0.jpg,dog\n", r"several classes .* 0.jpg \(cat, dog\)"),
        (ABC, "a.jpg,cat\na.jpg,dog\nb.jpg,cat\n", r"several classes .* a.jpg \(cat, dog\)"),
        (("a.jpg", "a.png", "b.jpg"), "a,cat\nb,dog\n", "one line a for two images"),
        (CAMS, "cam3/0.jpg,cat\ncam3/1.jpg,dog\n", "no class for 4 of 4 images"),
    ],
)
def test_what_is_not_clear_is_refused(label, images, rows, words):
    with pytest.raises(UserError, match=words):
        label(images, rows)


@pytest.mark.trial
def test_names_alone_label_with_a_word_of_it(label, capsys):
    """The folders of the table are not those of the source, and no two images share a name."""
    found, _, _ = label(ABC, "x/a.jpg,cat\ny/b.jpg,dog\nx/c.jpg,cat\n")
    assert found == CAT_DOG_CAT
    assert "3 images" in (said := capsys.readouterr().err) and "names alone" in said


@pytest.mark.trial
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("3", "0", "10"), ("3", "0", "10")),
        (("3.0", "0.0", "10.0"), ("3", "0", "10")),
        (("2.0", "-1", "1"), ("2", None, "1")),
        (("cat", "", "dog"), ("cat", None, "dog")),
        (("cat", "nan", "none"), ("cat", None, "none")),
        (("1.0", "NaN", "2.0"), ("1", None, "2")),
        (('"a, b"', "c", "c"), ("a, b", "c", "c")),
        (("the\u0301", "th\u00e9", "tea"), ("th\u00e9", "th\u00e9", "tea")),
    ],
)
def test_the_forms_of_a_class(label, values, expected):
    rows = "image,label\n" + "".join(f"{i},{v}\n" for i, v in zip("abc", values, strict=True))
    found, classes, lines = label(ABC, rows)
    wanted = {path: name for path, name in zip(ABC, expected, strict=True) if name}
    assert found == wanted
    assert len(lines) == 2 * (len(wanted) < 3)  # the row and the image
    assert classes in (tuple(sorted(set(wanted.values()))), ("0", "3", "10"))


@pytest.mark.trial
def test_what_does_not_fit_is_counted_and_named(label):
    rows = "a.jpg,cat\nb.jpg,dog\nc.jpg\nd.jpg,dog\ne.jpg,dog\nf.jpg,\n"
    _, _, lines = label((*ABC, "f.jpg", "g.jpg", "h.jpg", "d.jpg", "e.jpg"), rows)
    assert lines == [
        "images that --labels has no class for: 4, such as c.jpg, f.jpg, g.jpg",
        "lines of the label file with another number of columns: 1, such as c.jpg",
        "lines of --labels without a class: 1, such as f.jpg",
    ]


@pytest.mark.trial
def test_file_names_compare_in_one_unicode_form(label):
    found, _, _ = label(("cafe\u0301.jpg", "x.jpg"), "caf\u00e9.jpg,tea\nx.jpg,tea\n")
    assert found == {"cafe\u0301.jpg": "tea", "x.jpg": "tea"}


@pytest.mark.trial
@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        ("a.csv", b"a.jpg,caf\xe9\n", "no text in UTF-8"),
        ("a.csv", b"\xff\xd8\xff\xe0\x00\x10JFIF", "no text in UTF-8"),
        ("a.csv", b"\xff\xfea", "no text in UTF-8"),
        ("a.csv", b"a\0.\0j\0", "no table in text"),
        ("a.xlsx", b"PK\x03\x04\0", "no table in text"),
        ("a.json", b'{"a.jpg": "cat"}', "no table in text"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b"\n \n", "is empty"),
        ("a.txt", b"490\n361\n", "columns: 1"),
        ("a.txt", b"one two three\n", "columns: 3"),
        ("a.csv", b"image,healthy,rust\na,0,1\nb,1,0\nc,1,0\n", "columns: 3"),
        ("a.csv", b"a.jpg,0.5\nb.jpg,1\nc.jpg,2\n", "class 0.5: give whole numbers"),
        ("a.csv", b"a.jpg,['cat']\nb.jpg,['dog']\nc.jpg,[]\n", "several classes for an image"),
        ("a.csv", b'a.jpg,"' + b"x" * (2 << 20) + b'"\n', "is no table"),
        ("meta.mat", b"MATLAB 5.0 MAT-file\0", "no table in text"),
        ("a.zip", b"nothing", "neither a folder, a zip nor a tar"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(label, name, contents, words):
    with pytest.raises(UserError, match=re.escape(words)) as told:
        label(ABC, contents, name)
    assert str(told.value).isprintable()


@pytest.mark.trial
def test_a_column_of_ids_is_no_class(label):
    images = [f"{i}.jpg" for i in range(30)]
    with pytest.raises(UserError, match="30 classes, such as a picture of 0, for 30 images"):
        label(images, "".join(f"{image},a picture of {i}\n" for i, image in enumerate(images)))


@pytest.mark.trial
def test_a_devkit_that_is_damaged_or_without_scipy(label, tmp_path, monkeypatch):
    def devkit(truth, meta=b"nothing"):
        with zipfile.ZipFile(tmp_path / "kit.zip", "w") as archive:
            archive.writestr("data/meta.mat", meta)
            archive.writestr("data/ILSVRC2012_validation_ground_truth.txt", truth)
        return (tmp_path / "kit.zip").read_bytes()

    with pytest.raises(UserError, match=r"meta.mat .* is damaged"):
        label(ABC, devkit("1\n2\n"), "kit.zip")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match="needs scipy: pip install scipy"):
        label(ABC, devkit("1\n2\n"), "kit.zip")


@pytest.mark.trial
def test_labels_are_for_images_in_files(tmp_path, encode, picture):
    prepare_arrays([(encode(picture(0)), None, "a.png")], str(tmp_path / "set"))
    (tmp_path / "labels.csv").write_text("a.png,cat\n")
    with pytest.raises(UserError, match=r"--labels=.* is for images in files"):
        prepare(str(tmp_path / "set"), str(tmp_path / "out"), labels=str(tmp_path / "labels.csv"))
