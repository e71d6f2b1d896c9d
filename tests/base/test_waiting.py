"""Long work shows that it goes on, and can be given up."""

import subprocess
import sys
import time

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


def test_work_that_is_given_up_does_not_keep_the_process():
    script = (
        "import time\n"
        "from nepa_jax.base.waiting import GivenUp, attended\n"
        "try: attended(lambda: time.sleep(60), 'compiling', lambda: True)\n"
        "except GivenUp: print('given up')\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "given up\n")
    assert time.monotonic() - began < 30
    with pytest.raises(GivenUp):
        attended(lambda: time.sleep(0.5), "compiling", lambda: True)
