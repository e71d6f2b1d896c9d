"""What is said and stopped beside the loop."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nepa_jax.base.errors import RunDiverged
from nepa_jax.objectives import nepa
from nepa_jax.run.goodput import Goodput
from nepa_jax.run.hooks import (
    PROFILED_ON_SIGNAL,
    CheckpointHook,
    ProfileHook,
    ProfileRequest,
    WatchdogHook,
    check_end,
    skip_guard,
)
from nepa_jax.run.report import Report

HEALTHY = {
    "train/loss": -0.5,
    "train/target_std": 0.9,
    "perf/images_per_s": 100.0,
    "time/step_s": 1.0,
    "time/data_wait_s": 0.01,
}


def said(capsys: pytest.CaptureFixture, *logged: dict[str, float]) -> list[str]:
    """The warnings of a run that logs these at steps 1, 2, …"""
    report = Report([], start_step=0, total_steps=10, alarms=nepa.alarms)
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
    assert "at step 2" in warning and "data.resize=fast" in warning


@pytest.mark.trial
def test_an_eta_is_told_from_the_second_step_and_then_every_ten_seconds(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    report = Report([], start_step=0, total_steps=100)
    report(1, HEALTHY)
    for step in range(2, 12):
        now[0] += 4.0
        report.pulse(step, -0.5)
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["step 1/100", "step 2/100", "step 5/100", "step 8/100", "step 11/100"]  # fmt: skip
    assert lines[1][-1] == "ETA 0:06:32"  # 98 steps of 4 s


class Saves:
    """In place of a run's checkpoints."""

    saved_step = 0

    def __init__(self) -> None:
        self.steps: list[int] = []

    def check(self) -> None: ...

    def save(self, step: int, state: object, provenance: object) -> None:
        self.steps.append(step)


@pytest.mark.trial
@pytest.mark.parametrize(
    "first_minutes, saved", [(1.0, [63, 200]), (0.0, [200]), (1e-9, [1, 200]), (5.0, [200])]
)
def test_a_first_checkpoint_comes_by_time(monkeypatch, tmp_path, first_minutes, saved):
    """At one second a step; the clock is asked after ever more steps, a quarter more each time."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    saves = Saves()
    hook = CheckpointHook(200, first_minutes, saves, None, Goodput(tmp_path / "goodput.json"))
    for step in range(1, 250):
        now[0] += 1.0
        hook(step, None, {})
    assert saves.steps == saved


def test_too_many_skipped_steps_stop_the_run_and_name_the_examples():
    guard = skip_guard(2, lambda step, rows: np.arange(rows) + 100 * step)
    guard(7, {"skipped_in_a_row": 2})
    with pytest.raises(RunDiverged, match=r"step 8.*\[700, 701.*715\]"):
        guard(8, {"skipped_in_a_row": 3})


@pytest.mark.parametrize(("lost", "is_sound"), [(0, True), (1, True), (2, False), (7, False)])
def test_a_run_whose_last_steps_were_thrown_away_is_not_done(lost, is_sound):
    """The weights are sound, but nobody would want them: this state is what a resume sees, too."""
    state = SimpleNamespace(step=jnp.int32(7), skipped_in_a_row=jnp.int32(lost))
    with (
        nullcontext()
        if is_sound
        else pytest.raises(RunDiverged, match=f"weights of step {7 - lost}")
    ):
        check_end(state)


HANGING = """
import time
from nepa_jax.run.hooks import WatchdogHook

def a_collective_that_never_ends():
    time.sleep(3)

with WatchdogHook(0.5) as watchdog:
    time.sleep(1)  # the first step may take long
    print("first step done", flush=True)
    for step in range(3):
        watchdog(step, None, {})
        time.sleep(0.2)
    print("hanging", flush=True)
    a_collective_that_never_ends()
"""


def test_a_hang_shows_where_the_threads_are():
    done = subprocess.run(
        [sys.executable, "-u", "-c", HANGING],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True,
    )  # fmt: skip
    before, hanging, after = done.stdout.partition("hanging\n")
    assert hanging and "Timeout" not in before
    assert after.count("a_collective_that_never_ends") >= 2  # told again and again


def test_the_watchdog_is_silent_when_off_or_closed(capfd):
    for seconds in (0.0, 0.1):
        with WatchdogHook(seconds) as watchdog:
            watchdog(1, None, {})
        time.sleep(0.2)
    assert "Timeout" not in capfd.readouterr().err


class Tracer:
    """Records what is traced, and between which steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.calls: list[tuple[str, int]] = []
        self.step = 0
        monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: self._note("start"))
        monkeypatch.setattr(jax.profiler, "stop_trace", lambda: self._note("stop"))

    def _note(self, name: str) -> None:
        self.calls.append((name, self.step))

    def run(self, hook: ProfileHook, steps: range) -> None:
        for self.step in steps:
            hook(self.step, None, {"loss": jnp.zeros(())})


def test_the_steps_of_the_config_are_profiled(monkeypatch, tmp_path):
    tracer = Tracer(monkeypatch)
    tracer.run(ProfileHook(tmp_path, (5, 8), ProfileRequest()), range(1, 20))
    assert tracer.calls == [("start", 4), ("stop", 7)]  # after step 4, after step 7


def test_a_signal_profiles_the_next_steps(monkeypatch, tmp_path):
    former = signal.getsignal(signal.SIGUSR1)
    with ProfileRequest() as request:
        tracer, hook = Tracer(monkeypatch), ProfileHook(tmp_path, (0, 0), request)
        tracer.run(hook, range(1, 4))
        assert tracer.calls == []
        os.kill(os.getpid(), signal.SIGUSR1)
        tracer.run(hook, range(4, 20))
    assert signal.getsignal(signal.SIGUSR1) == former
    assert tracer.calls == [("start", 4), ("stop", 4 + PROFILED_ON_SIGNAL)]


def test_a_profile_is_written(tmp_path, capsys):
    hook = ProfileHook(tmp_path / "profile", (1, 2), ProfileRequest())
    for step in range(3):
        hook(step, None, {"loss": jnp.ones(8) + step})
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert "xprof --logdir" in capsys.readouterr().out
