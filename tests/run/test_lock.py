"""One run at a time in a workdir: whoever else comes is told who is there, whoever died is forgotten."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.run import lock
from nepa_jax.run.lock import WorkdirLock

HOLD = """
import sys, time
from pathlib import Path
from nepa_jax.run.lock import WorkdirLock
with WorkdirLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def quick(monkeypatch):
    """Beats and looks every few hundredths of a second."""
    for name, seconds in (("BEAT_S", 0.05), ("LOOK_S", 0.05), ("STALE_S", 0.5)):
        monkeypatch.setattr(lock, name, seconds)


def write_holder(workdir, *, beat: float, boot: str = "another machine's", run: str = "1") -> None:
    holder = {"run": run, "host": "far\x1b[1m", "boot": boot, "pid": 7, "beat": beat}
    (workdir / "run.lock").write_text(json.dumps(holder))


@pytest.mark.trial
def test_a_second_process_is_refused_and_told_who_holds_it_until_that_is_killed(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is in use.*process {holder.pid} on"), WorkdirLock(tmp_path):  # fmt: skip
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        began = time.monotonic()
        with WorkdirLock(tmp_path):
            assert time.monotonic() - began < 1
    finally:
        holder.kill()


def test_it_is_free_again_afterwards(tmp_path):
    for _ in range(2):
        with WorkdirLock(tmp_path):
            pass
    assert (tmp_path / "run.lock").read_text().strip() == ""


@pytest.mark.trial
def test_a_holder_on_another_machine_that_goes_on_is_respected(tmp_path, quick, monkeypatch):
    now = time.time()
    write_holder(tmp_path, beat=now)
    monkeypatch.setattr(time, "sleep", lambda seconds: write_holder(tmp_path, beat=now + 1))
    with pytest.raises(UserError, match=r"process 7 on far\\x1b\[1m"), WorkdirLock(tmp_path):
        pass


@pytest.mark.trial
@pytest.mark.parametrize("beat", [-1000.0, 0.0, 1e9])  # long ago, just now, a clock that is ahead
def test_a_holder_on_another_machine_that_is_silent_is_forgotten(tmp_path, quick, beat):
    write_holder(tmp_path, beat=time.time() + beat)
    began = time.monotonic()
    with WorkdirLock(tmp_path):
        assert time.monotonic() - began < 5


ODD = '{{"run": "1", "host": "far", "boot": "another", "pid": 7, "beat": {}}}'


@pytest.mark.trial
@pytest.mark.parametrize(
    "content",
    ["", "{", "[1]", '{"run": 1}', "\xff", ODD.format('"soon"'), ODD.format("1" + "0" * 400)],
)
def test_a_file_that_says_nothing_holds_nothing(tmp_path, content):
    (tmp_path / "run.lock").write_text(content, "latin-1")
    with WorkdirLock(tmp_path):
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()


def test_beats_go_on(tmp_path, quick):
    with WorkdirLock(tmp_path) as held:
        first = json.loads((tmp_path / "run.lock").read_text())["beat"]
        time.sleep(0.3)
        assert json.loads((tmp_path / "run.lock").read_text())["beat"] > first
        held.check()


@pytest.mark.trial
def test_a_run_that_was_taken_over_ends(tmp_path, quick):
    """A machine that was frozen must not write into another one's run."""
    with WorkdirLock(tmp_path) as held:
        write_holder(tmp_path, beat=time.time(), run="2")
        time.sleep(0.3)
        with pytest.raises(UserError, match="took this workdir over"):
            held.check()
    assert json.loads((tmp_path / "run.lock").read_text())["run"] == "2"
