"""What a run or a load changes in the process that calls it is put back when it ends, however."""

import faulthandler
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pytest
import small

import nepa_jax
from nepa_jax.base.errors import UserError
from nepa_jax.checkpoint.saving import Checkpoints
from nepa_jax.run.hooks import CheckpointHook
from nepa_jax.train import pretrain

LOGGERS = ("", "absl", "jax", "orbax")


def process() -> dict[str, Any]:
    """All that callers of a library may have set up."""
    return {
        "excepthooks": (sys.excepthook, sys.unraisablehook, threading.excepthook),
        "streams": (sys.stdout, sys.stderr),
        "signals": {n: signal.getsignal(n) for n in sorted(signal.valid_signals())},
        "loggers": {
            name: (log.level, list(log.filters), list(log.handlers), log.disabled)
            for name in LOGGERS
            for log in [logging.getLogger(name)]
        },
        "jax": dict(jax.config.values),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "faulthandler": faulthandler.is_enabled(),
    }


def run(dataset: str, workdir: Path, **changes: str) -> None:
    steps = dict(schedule__total_steps="4", checkpoint__every_steps="2", log__watchdog_s="60")
    pretrain(small.config("nepa", dataset, **(steps | changes)), str(workdir))


@pytest.fixture(scope="module")
def finished(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("finished")
    run(dataset, workdir)
    return workdir


def test_a_run_that_ends_well(dataset, finished, tmp_path):
    before = process()
    run(dataset, tmp_path / "run")
    assert process() == before


def test_a_run_that_raises_while_it_trains(dataset, finished, tmp_path, monkeypatch):
    def broken(hook: CheckpointHook, step: int, *_: object) -> None:
        if step == 2:
            raise RuntimeError("broken")

    monkeypatch.setattr(CheckpointHook, "__call__", broken)
    before = process()
    with pytest.raises(RuntimeError, match="broken"):
        run(dataset, tmp_path / "run", log__profile_steps="(1,4)")
    assert process() == before
    with jax.profiler.trace(str(tmp_path / "trace")):  # one at a time in a process
        pass


def test_a_workdir_whose_checkpoints_cannot_be_opened(tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError("away")

    monkeypatch.setattr(ocp, "CheckpointManager", broken)
    before = process()
    with pytest.raises(UserError, match="cannot be saved"):
        Checkpoints(str(tmp_path))
    assert process() == before


def test_loading_weights_changes_nothing(finished):
    before = process()
    nepa_jax.load(str(finished)).encode(small.images(2))
    assert process() == before


def test_hooks_are_those_of_the_caller_while_a_checkpoint_is_read(finished, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "nepa_jax.checkpoint.reading.open_part",
        lambda *_: seen.append((sys.excepthook, sys.unraisablehook)) or 1 / 0,
    )
    hooks = sys.excepthook, sys.unraisablehook
    with pytest.raises(UserError, match="no checkpoint is sound"):
        nepa_jax.load(str(finished))
    assert set(seen) == {hooks}
