"""Long work shows that it goes on, and can be given up."""

import gc
import subprocess
import sys
import time
import weakref

import pytest

from nepa_jax.base import waiting
from nepa_jax.base.waiting import GivenUp, attended, told


def test_results_and_errors_come_through():
    assert attended(lambda: 3, "counting") == 3
    with pytest.raises(KeyError, match="lost"):
        attended(lambda: {}["lost"], "looking")


def test_long_work_is_told_of(capsys, monkeypatch):
    monkeypatch.setattr(waiting, "SECONDS_PER_LINE", 0.1)
    monkeypatch.setattr(waiting, "LOOK_S", 0.02)
    attended(lambda: time.sleep(0.5), "compiling")
    with told("compiling"):
        time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    assert 4 <= len(lines) <= 10 and all(line.startswith("compiling: ") for line in lines)


def ended(seconds: float, after: str = "") -> tuple[int, str]:
    """Exit code and output of a process that gives up work of so many seconds."""
    script = (
        "import time\n"
        "from nepa_jax.base.waiting import GivenUp, attended\n"
        f"try: attended(lambda: time.sleep({seconds}), 'compiling', lambda: True)\n"
        f"except GivenUp: print('given up')\n{after}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    return done.returncode, done.stdout


def test_work_that_is_given_up_does_not_keep_the_process():
    began = time.monotonic()
    assert ended(60) == (0, "given up\n")
    assert ended(60, "raise ValueError") == (1, "given up\n")
    assert time.monotonic() - began < 30
    with pytest.raises(GivenUp):
        attended(lambda: time.sleep(0.5), "compiling", lambda: True)


def test_work_that_was_given_up_is_let_go_when_it_ends():
    """It may hold a whole model."""

    class Work:
        def __call__(self) -> None:
            time.sleep(0.4)

    held = weakref.ref(work := Work())
    try:
        attended(work, "compiling", lambda: True)
    except GivenUp:
        del work
    deadline = time.monotonic() + 10
    while held() is not None and time.monotonic() < deadline:
        time.sleep(0.02)
        gc.collect()
    assert held() is None
