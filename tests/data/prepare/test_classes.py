"""Class names of two splits go together, or the difference is told in a way that helps."""

import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.data.prepare.classes import are_ids, in_order, labels_in, told_forms
from nepa_jax.data.prepare.split import prepare, prepare_arrays
from nepa_jax.data.records import open_dataset

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def test_numbers_are_in_the_order_of_their_values():
    assert in_order({"10", "2", "0"}) == ("0", "2", "10")
    assert in_order({"10", "2", "b"}) == ("10", "2", "b")


def test_labels_follow_the_names_that_are_there():
    assert labels_in(["b", "a", "c"], ["a", "b", "c"], "val", "out") == [1, 0, 2]


@pytest.mark.trial
@pytest.mark.parametrize("known", [COMPOSED, DECOMPOSED])
@pytest.mark.parametrize("new", [COMPOSED, DECOMPOSED])
def test_a_name_is_one_in_all_unicode_forms(known, new):
    assert labels_in(["tea", known], [new, "tea"], "val", "out") == [1, 0]


@pytest.mark.trial
@pytest.mark.parametrize(
    ("known", "new", "words"),
    [
        (["Cat", "dog"], ["cat", "dog"], "'cat' and 'Cat' differ in case only"),
        (["cat", "dog"], ["cat"], "the split lacks 'dog'"),
        (["cat"], ["cat", "emu"], "only the split has 'emu'"),
        (["cat"], ["cat", *"abcde"], "only the split has 'a', 'b', 'c' and 2 more"),
        (["cat"], ["cat", "\x1b]0;x\x07"], r"only the split has '\\x1b\]0;x\\x07'"),
    ],
)
def test_a_difference_is_told(known, new, words):
    with pytest.raises(UserError, match=words) as told:
        labels_in(known, new, "val", "out")
    assert str(told.value).isprintable()


@pytest.mark.trial
def test_two_folders_that_differ_in_form_are_told():
    (line,) = told_forms([COMPOSED, DECOMPOSED, "tea"])
    assert COMPOSED in line and "2 Unicode forms" in line


def test_ids_are_no_classes():
    assert are_ids([f"id{i}" for i in range(40)])
    assert not are_ids([f"class{i % 20}" for i in range(40)])
    assert not are_ids(list("abc"))


@pytest.mark.trial
def test_a_split_with_another_order_of_the_classes_keeps_its_labels(
    tmp_path, encode, picture, capsys
):
    """Parquet and prepared sets have an order of their own, and folders the sorted one."""
    out = str(tmp_path / "out")
    prepare_arrays(
        [(encode(picture(i)), i, f"{i}.png") for i in (0, 1)], out, classes=["tea", COMPOSED]
    )
    for name in (DECOMPOSED, "tea"):
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "0.png").write_bytes(encode(picture(5)))
    prepare(str(tmp_path / "val"), out, "val")
    found = {r.name[0]: r.label for r in open_dataset(out, "val").read(range(2))}
    assert found == {"c": 1, "t": 0} and open_dataset(out, "val").classes == ("tea", COMPOSED)
