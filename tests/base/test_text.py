"""Text of strangers: nothing in it reaches a terminal as a command, or a parser as a surprise."""

import json
import math

import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.base.text import printable, read_json, to_json


@pytest.mark.parametrize("text", ["plain", "Füße, 漢字, émoji 🐈", ""])
def test_what_can_be_printed_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("one\ntwo", r"one\ntwo"),
        ("caf\u202egnp.exe", r"caf\u202egnp.exe"),  # turns the direction of writing
        ("bad\udcff", r"bad\udcff"),  # a byte of a file name that is no UTF-8
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text, shown):
    assert printable(text) == shown


def test_an_error_has_one_line_for_each_mistake():
    assert str(UserError("a\nb", "c\x1b")) == "a\\nb\n  c\\x1b"


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"[" * 100_000, "too deep"),
        (b"\xff\xfe", "not JSON text"),
        (b'{"a": ', "not JSON text"),
        (b"[1]", "holds a JSON list, not a dict"),
        (b"", "not JSON text"),
    ],
)
def test_any_wrong_file_is_one_kind_of_error(tmp_path, content, problem):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(ValueError, match=problem):
        read_json(tmp_path / "x.json", dict)


def test_numbers_without_a_word_in_json_are_null():
    text = to_json({"loss": math.nan, "rates": (math.inf, 1.5), "step": 3})
    assert json.loads(text) == {"loss": None, "rates": [None, 1.5], "step": 3}
