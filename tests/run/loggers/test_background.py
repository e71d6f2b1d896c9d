"""A logger's time and mistakes are its own: the loop neither waits nor stops for it."""

import threading
import time

import numpy as np
import pytest

from nepa_jax.run.loggers import background
from nepa_jax.run.loggers.background import Background


class Told:
    """A tool that remembers what it was told."""

    def __init__(self):
        self.calls = []

    def scalars(self, step, scalars):
        self.calls.append(("scalars", step, dict(scalars)))

    def picture(self, step, pixels):
        self.calls.append(("picture", step, pixels.shape))

    def close(self, summary, ended_well):
        self.calls.append(("close", dict(summary), ended_well))


class Stuck(Told):
    """It answers no call before it is let go."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def scalars(self, step, scalars):
        self.go.wait(30)
        super().scalars(step, scalars)


def test_all_is_handed_on_in_order_and_closed_with_what_was_last():
    told = Told()
    with Background("told", lambda: told) as logger:
        logger.write(1, {"train/loss": 2.0})
        logger.picture(1, np.zeros((4, 5, 3), np.uint8))
        logger.write(2, {"train/loss": 1.0})
    assert told.calls == [
        ("scalars", 1, {"train/loss": 2.0}),
        ("picture", 1, (4, 5, 3)),
        ("scalars", 2, {"train/loss": 1.0}),
        ("close", {"train/loss": 1.0}, True),
    ]


def test_a_run_that_fails_is_told_so():
    told = Told()
    with pytest.raises(ZeroDivisionError), Background("told", lambda: told):
        _ = 1 / 0
    assert told.calls == [("close", {}, False)]


class Broken(Told):
    """A tool that fails at one of its calls."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def scalars(self, step, scalars):
        super().scalars(step, scalars)
        if self.at == step:
            raise ConnectionError("the server is\naway")

    def close(self, summary, ended_well):
        super().close(summary, ended_well)
        if self.at == "close":
            raise SystemExit(3)


@pytest.mark.trial
@pytest.mark.parametrize(("at", "calls"), [(1, 1), (3, 3), ("close", 6)])
def test_a_failure_is_one_line_and_the_tool_gets_nothing_more(capsys, at, calls):
    tool = Broken(at)
    with Background("broken", lambda: tool) as logger:
        for step in range(1, 6):
            logger.write(step, {"train/loss": 1.0})
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("warning: broken: ")
    assert "the run goes on without it" in told and len(tool.calls) == calls


@pytest.mark.trial
def test_a_tool_that_cannot_be_opened_is_one_line(capsys):
    def opened():
        raise OSError(28, "No space left on device")

    with Background("full", opened) as logger:
        logger.write(1, {})
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "warning: full: OSError" in told and "No space left" in told


@pytest.mark.trial
def test_a_slow_tool_holds_nothing_up_and_is_told_of_once(monkeypatch, capsys):
    monkeypatch.setattr(background, "MAX_WAITING", 4)
    tool = Stuck()
    with Background("slow", lambda: tool) as logger:
        began = time.monotonic()
        for step in range(1, 101):
            logger.write(step, {})
        assert time.monotonic() - began < 1
        tool.go.set()
    assert capsys.readouterr().err.count("warning: slow: is more than 4 steps behind") == 1
    steps = [call[1] for call in tool.calls[:-1]]
    assert steps == sorted(steps) and 4 <= len(steps) < 100 and tool.calls[-1][0] == "close"


@pytest.mark.trial
@pytest.mark.parametrize("waiting", [2, 1000])
def test_a_tool_that_hangs_at_the_end_is_left_behind(monkeypatch, capsys, waiting):
    monkeypatch.setattr(background, "MAX_WAITING", waiting)
    monkeypatch.setattr(background, "CLOSE_S", 0.2)
    tool, began, let_go = Stuck(), time.monotonic(), []
    with Background("hung", lambda: tool, lambda: let_go.append(True)) as logger:
        for step in range(9):
            logger.write(step, {})
    assert time.monotonic() - began < 2 and let_go == [True]
    assert "warning: hung: did not finish in 0.2 s" in capsys.readouterr().err
    tool.go.set()
