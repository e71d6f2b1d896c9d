"""A run's log as columns: what counts of steps that were logged twice, and what was no number."""

import json

import numpy as np
import pytest

from nepa_jax.run import log
from nepa_jax.run.log import read_log


def written(path, *rows, end="\n"):
    """A file of lines: objects, or text as it stands."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + end)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def test_columns_have_a_place_for_every_step(path):
    found = read_log(written(path, {"step": 1, "a": 0.5}, {"step": 3, "a": 1, "b": 2.5}))
    np.testing.assert_array_equal(found.steps, [1, 3])
    np.testing.assert_array_equal(found.columns["a"], [0.5, 1.0])
    np.testing.assert_array_equal(found.columns["b"], [np.nan, 2.5])
    assert found.lost == {} and found.went_back == []


def test_a_step_may_have_several_lines(path):
    """Evaluations write one beside the step's own."""
    rows = [{"step": 2, "a": 1.0}, {"step": 2, "eval/knn": 0.5}, {"step": 4, "a": 2.0}]
    found = read_log(written(path, *rows))
    np.testing.assert_array_equal(found.steps, [2, 4])
    np.testing.assert_array_equal(found.columns["a"], [1.0, 2.0])
    np.testing.assert_array_equal(found.columns["eval/knn"], [0.5, np.nan])


def test_of_lines_of_one_step_the_last_counts_whatever_else_they_hold(path):
    rows = [{"step": 1, "a": 1.0, "b": 1.0}, {"step": 2, "a": 2.0}, {"step": 2, "b": 3.0, "a": 3.0}]
    rows += [{"step": 2, "a": 4.0}]
    found = read_log(written(path, *rows))
    np.testing.assert_array_equal(found.columns["a"], [1.0, 4.0])
    np.testing.assert_array_equal(found.columns["b"], [1.0, 3.0])


def test_steps_done_again_replace_what_was_there(path):
    rows = [{"step": s, "a": 0.0} for s in (1, 2, 3, 4, 5)] + [
        {"step": s, "a": 1.0} for s in (3, 6)
    ]
    found = read_log(written(path, *rows))
    np.testing.assert_array_equal(found.steps, [1, 2, 3, 6])
    np.testing.assert_array_equal(found.columns["a"], [0.0, 0.0, 1.0, 1.0])
    assert found.went_back == [(3, 3)]


@pytest.mark.trial
def test_what_is_not_finite_is_known_and_no_number(path):
    rows = [{"step": 1, "a": None, "b": 1.0}, '{"step": 2, "a": NaN, "b": -Infinity}']
    found = read_log(written(path, *rows, {"step": 3, "a": 1.0, "b": 10**400}))
    np.testing.assert_array_equal(found.columns["a"], [np.nan, np.nan, 1.0])
    np.testing.assert_array_equal(found.lost["a"], [1, 2])
    np.testing.assert_array_equal(found.lost["b"], [2, 3])


@pytest.mark.trial
def test_text_lists_and_truth_are_no_numbers(path):
    found = read_log(written(path, {"step": 1, "a": "low", "b": [1], "c": True, "d": 0.5}))
    assert list(found.columns) == ["d"] and found.lost == {}


@pytest.mark.trial
@pytest.mark.parametrize(
    "bad", ["[1]", "", '{"step": "2"}', '{"step": true}', '{"step": -1}', '{"step": 1e3}',
            '{"step": 1' + 30 * "0" + "}", "[" * 100_000, '{"step": 2, "tra', "\x00\ud800"],
)  # fmt: skip
def test_damaged_lines_are_counted_and_left_out(path, bad):
    good = '{"step": 7, "a": 1.0}'
    path.write_bytes("\n".join([good, bad, good, ""]).encode("utf-8", "surrogatepass"))
    found = read_log(path)
    assert (found.lines, found.damaged) == (3, 1)
    np.testing.assert_array_equal(found.columns["a"], [1.0])


@pytest.mark.trial
def test_a_half_written_last_line_is_nothing_special(path):
    found = read_log(written(path, {"step": 1, "a": 1.0}, '{"step": 2, "a": 1', end=""))
    assert found.damaged == 0 and found.steps.tolist() == [1]


@pytest.mark.trial
@pytest.mark.parametrize("text", ["", "\n", "no run\n"])
def test_a_file_without_a_step_has_none(path, text):
    path.write_text(text)
    found = read_log(path)
    assert len(found.steps) == 0 and found.columns == {}


def test_blocks_join_without_a_seam(path, monkeypatch):
    rows = [{"step": s, "a": s / 2} | ({"b": s * 1.0} if s % 7 == 0 else {}) for s in range(1, 500)]
    whole = read_log(written(path, *rows))
    monkeypatch.setattr(log, "BLOCK", 200)
    pieces = read_log(path)
    for key in ("a", "b"):
        np.testing.assert_array_equal(whole.columns[key], pieces.columns[key])
    np.testing.assert_array_equal(whole.columns["b"][6::7], np.arange(7, 500, 7))


@pytest.mark.trial
def test_a_log_of_countless_metrics_is_cut_and_says_so(path, monkeypatch):
    monkeypatch.setattr(log, "MOST_METRICS", 3)
    found = read_log(written(path, {"step": 1} | {f"m{i}": 0.0 for i in range(10)}))
    assert list(found.columns) == ["m0", "m1", "m2"] and found.left_out == 7
