"""The account of a run's time."""

import json

import pytest

from nepa_jax.run.goodput import Goodput, Start, shares


def start(began: float, ended: float, first: int, last: int, **seconds: float) -> Start:
    return Start(began, ended, first, last, seconds)


def test_shares_add_up_and_steps_are_what_is_left():
    found = shares([start(0, 100, 0, 50, start=5, compile=10, data=4, checkpoint=1)])
    assert sum(found.values()) == pytest.approx(1)
    assert found["steps"] == pytest.approx(0.8) and found["compile"] == pytest.approx(0.1)
    assert found["lost"] == found["away"] == 0


def test_steps_done_again_and_the_time_between_starts_do_not_count():
    """50 steps in 100 s, killed; 20 s later it goes on from step 40 for another 100 s."""
    found = shares([start(0, 100, 0, 50), start(120, 220, 40, 90)])
    assert found["lost"] == pytest.approx(20 / 220)
    assert found["away"] == pytest.approx(20 / 220)
    assert found["steps"] == pytest.approx(180 / 220)


def test_a_start_that_did_no_step_loses_none():
    found = shares([start(0, 10, 30, 30, start=10), start(10, 20, 30, 40)])
    assert found["lost"] == 0 and found["steps"] == pytest.approx(0.5)


def test_the_account_goes_on_over_restarts(tmp_path):
    path = tmp_path / "goodput.json"
    for first in (0, 10):
        account = Goodput(path)
        with account.spent("compile"):
            pass
        account.begin(first, lambda: 0.25)
        logged = account.write(first + 10)
    assert [entry["last_step"] for entry in json.loads(path.read_text())] == [10, 20]
    assert sum(logged.values()) == pytest.approx(1)
    assert "2 start(s)" in account.summary() and "data" in account.summary()


ODD = '[{{"began": 1, "ended": 2, "first_step": 0, "last_step": 3, "seconds": {}}}]'


@pytest.mark.trial
@pytest.mark.parametrize(
    "content",
    [
        '[{"began": 1',
        "{}",
        "[1]",
        ODD.format('{"data": "long"}'),
        ODD.format('{"data": 1%s}' % ("0" * 400)),
    ],
)
def test_a_damaged_account_begins_anew(tmp_path, content):
    path = tmp_path / "goodput.json"
    path.write_text(content)
    account = Goodput(path)
    account.begin(0, lambda: 0.0)
    account.write(1)
    assert len(json.loads(path.read_text())) == 1
