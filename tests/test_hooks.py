"""What is said and stopped beside the loop."""

import numpy as np
import pytest

from nepa_jax.errors import RunDiverged
from nepa_jax.hooks import Report, skip_guard

HEALTHY = {
    "train/loss": -0.5,
    "train/target_std": 0.9,
    "perf/images_per_s": 100.0,
    "time/step_s": 1.0,
    "time/data_wait_s": 0.01,
}


def said(capsys: pytest.CaptureFixture, *logged: dict[str, float]) -> list[str]:
    """The warnings of a run that logs these at steps 1, 2, …"""
    report = Report([], start_step=0, total_steps=10)
    for step, changes in enumerate(logged, start=1):
        report(step, HEALTHY | changes)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]


def test_a_healthy_run_is_told_nothing(capsys):
    assert said(capsys, {}, {}, {}) == []


def test_collapse_is_told_once_with_a_remedy(capsys):
    collapsed = {"train/target_std": 0.02}
    (warning,) = said(capsys, {}, collapsed, collapsed)
    assert "at step 2" in warning and "optim.lr" in warning


def test_waiting_for_data_is_told_once_but_not_at_the_first_step(capsys):
    waiting = {"time/data_wait_s": 0.2}
    (warning,) = said(capsys, waiting, waiting, waiting)
    assert "at step 2" in warning and "data.decode=fast" in warning


def test_too_many_skipped_steps_stop_the_run_and_name_the_examples():
    guard = skip_guard(2, lambda step: np.arange(40) + 100 * step)
    guard(7, {"skipped_in_a_row": 2})
    with pytest.raises(RunDiverged, match=r"step 8.*\[700, 701.*24 more"):
        guard(8, {"skipped_in_a_row": 3})
