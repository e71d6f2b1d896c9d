"""The log of a run: any reader of JSON takes it, and damage costs the damaged lines."""

import json
import math
import os
import time

import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.run import metrics
from nepa_jax.run.metrics import JsonlWriter, read_metrics


def test_a_resumed_run_takes_out_what_it_does_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        writer = JsonlWriter(path, start)
        for step in steps:
            writer.write(step, {"train/loss": step + start / 10})
        writer.close()
    assert [row["train/loss"] for row in read_metrics(path)] == [1.0, 2.0, 3.2, 4.2]


@pytest.mark.trial
def test_nan_is_null_and_no_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, 0)
    writer.write(1, {"train/loss": math.nan, "train/grad_norm": math.inf, "train/lr": 0.1})
    writer.close()
    strict = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert strict == {"step": 1, "train/loss": None, "train/grad_norm": None, "train/lr": 0.1}
    assert read_metrics(path) == [{"step": 1, "train/lr": 0.1}]


GOOD = b'{"step": 1, "train/loss": 0.5}\n'


@pytest.mark.trial
@pytest.mark.parametrize(
    "bad",
    [
        b"\xff\xfe\n", b"[1]\n", b'{"step": "2"}\n', b'{"step": true}\n', b"{}\n", b"null\n",
        b"[" * 100_000 + b"\n", b'{"step": 2, "tra\n',
    ],
)  # fmt: skip
def test_damaged_lines_are_left_out_and_counted(tmp_path, capsys, bad):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + bad + GOOD)
    assert [row["step"] for row in read_metrics(path)] == [1, 1]
    assert "1 of 3 lines are damaged" in capsys.readouterr().err
    JsonlWriter(path, 5).close()
    assert path.read_bytes() == GOOD + GOOD


@pytest.mark.trial
def test_a_line_that_a_killed_run_left_half_written_is_nothing_special(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + b'{"step": 2, "tr')
    assert len(read_metrics(path)) == 1 and capsys.readouterr().err == ""


@pytest.mark.trial
def test_text_for_a_number_is_no_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": "low", "train/lr": 0.1, "x": [1]}\n')
    assert read_metrics(path) == [{"step": 1, "train/lr": 0.1}]


@pytest.mark.trial
def test_lines_reach_storage_that_waits_for_synchronisation(tmp_path, monkeypatch):
    """As a mounted bucket does: a process that is killed must not take the log with it."""
    synced = []
    monkeypatch.setattr(metrics, "SYNC_S", 0.0)
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(number))
    writer = JsonlWriter(tmp_path / "metrics.jsonl", 0)
    time.sleep(0.01)
    writer.write(1, {})
    writer.close()
    assert len(synced) == 1


@pytest.mark.trial
def test_storage_that_refuses_is_one_line(tmp_path):
    (tmp_path / "a file").touch()
    with pytest.raises(UserError, match="the log cannot be written"):
        JsonlWriter(tmp_path / "a file" / "metrics.jsonl", 0)
