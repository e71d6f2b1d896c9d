"""Over all starts of a run a tool gets every step once, under one id."""

import json

import numpy as np
import pytest
import small

from nepa_jax.run.loggers import opening, tools
from nepa_jax.run.loggers.opening import loggers, open_tool
from nepa_jax.run.loggers.resuming import About, Mark, read_mark
from nepa_jax.run.metrics import JsonlWriter

SERVER = {}  # what a tool elsewhere has of its runs, by id


class Shelf:
    """A tool that cannot take back what it has got."""

    rewinds = False
    where = "on the shelf"

    def __init__(self, run, id):
        self.id = id or f"run-{len(SERVER) + 1}"
        self.steps = SERVER.setdefault(self.id, [])

    def scalars(self, step, scalars):
        self.steps.append((step, scalars["train/loss"]))

    def picture(self, step, pixels):
        self.steps.append((step, pixels.shape))

    def close(self, summary, ended_well):
        self.steps.append("closed")


class Rewound(Shelf):
    """One that forgets the steps after the one it is opened at."""

    rewinds = True

    def __init__(self, run, id):
        super().__init__(run, id)
        self.steps[:] = [row for row in self.steps if row != "closed" and row[0] <= run.start]


@pytest.fixture(autouse=True)
def shelf(monkeypatch):
    SERVER.clear()
    monkeypatch.setitem(tools.TOOLS, "wandb", Shelf)
    monkeypatch.setitem(tools.TOOLS, "tensorboard", Rewound)
    monkeypatch.setattr(opening, "load", lambda name, workdir: None)


def of(chosen: str):
    config = small.resolved("nepa")
    config.log.loggers = chosen
    return config


def run(workdir, steps, start=0, chosen="wandb"):
    """One start: what the loop would tell of some steps; the loss tells by which start."""
    with loggers(of(chosen), workdir, start) as copies:
        file = JsonlWriter(workdir / "metrics.jsonl", start)
        for step in steps:
            for writer in (file, *copies):
                writer.write(step, {"train/loss": step + start / 10})
        file.close()


def test_a_run_goes_on_under_its_id_and_no_step_comes_twice(tmp_path):
    run(tmp_path, (1, 2, 3, 4))
    run(tmp_path, (3, 4, 5, 6), start=2)
    assert {"run-1"} == {*SERVER}
    losses = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), "closed", (5, 5.2), (6, 6.2), "closed"]
    assert SERVER["run-1"] == losses
    assert read_mark(tmp_path / "loggers" / "wandb.json") == Mark("run-1", 6)


def test_a_tool_that_can_forget_gets_the_steps_that_are_done_again(tmp_path):
    run(tmp_path, (1, 2, 3, 4), chosen="tensorboard")
    run(tmp_path, (3, 4, 5), start=2, chosen="tensorboard")
    assert SERVER["run-1"] == [(1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2), (5, 5.2), "closed"]


def test_a_tool_that_comes_later_catches_up_from_the_file(tmp_path):
    run(tmp_path, (1, 2, 3), chosen="")
    run(tmp_path, (3, 4), start=2, chosen="wandb,tensorboard")
    for steps in SERVER.values():
        assert steps == [(1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2), "closed"]
    assert len(SERVER) == 2


def test_a_tool_that_failed_gets_at_the_next_start_what_it_missed(tmp_path, monkeypatch, capsys):
    def fails(self, step, scalars):
        if step == 3:
            raise ConnectionError("no route to host")
        self.steps.append((step, scalars["train/loss"]))

    with monkeypatch.context() as patch:
        patch.setattr(Shelf, "scalars", fails)
        run(tmp_path, (1, 2, 3, 4))
    assert "wandb: ConnectionError: no route to host; the run goes on" in capsys.readouterr().err
    run(tmp_path, (5, 6), start=4)
    assert [row for row in SERVER["run-1"] if row != "closed"] == [
        (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, 5.4), (6, 6.4)
    ]  # fmt: skip


@pytest.mark.trial
def test_a_package_that_is_broken_is_one_line(tmp_path, monkeypatch, capsys):
    def broken(name, workdir):
        raise AttributeError("module 'numpy' has no attribute 'float_'")

    monkeypatch.setattr(opening, "load", broken)
    run(tmp_path, (1, 2))
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith(
        "warning: wandb: AttributeError: module 'numpy'"
    )
    assert not SERVER and (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_run_that_begins_anew_in_its_folder_is_another_run(tmp_path):
    run(tmp_path, (1, 2))
    (tmp_path / "metrics.jsonl").unlink()
    run(tmp_path, (1, 2, 3))
    assert SERVER["run-2"] == [(1, 1.0), (2, 2.0), (3, 3.0), "closed"]


def test_a_run_killed_before_its_first_checkpoint_is_the_same_run(tmp_path):
    run(tmp_path, (1, 2))
    run(tmp_path, (1, 2, 3))
    assert SERVER == {"run-1": [(1, 1.0), (2, 2.0), "closed", (3, 3.0), "closed"]}


def test_pictures_come_once_too(tmp_path):
    about, pixels = About(tmp_path, {}, 0), np.zeros((2, 2, 3), np.uint8)
    for _ in range(2):
        tool = open_tool("wandb", about)
        tool.scalars(2, {"train/loss": 0.5})
        tool.picture(2, pixels)
    assert SERVER["run-1"] == [(2, 0.5), (2, (2, 2, 3))]


@pytest.mark.trial
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"id": "a", "step": "x"}', "\x00"])
def test_a_damaged_mark_is_a_new_run_and_told(tmp_path, capsys, text):
    path = tmp_path / "mark.json"
    path.write_text(text)
    assert read_mark(path) == Mark()
    assert capsys.readouterr().err.count("\n") == 1


def test_only_the_first_host_has_loggers(tmp_path, monkeypatch):
    monkeypatch.setattr(opening.jax, "process_index", lambda: 1)
    with loggers(of("wandb"), tmp_path, 0) as copies:
        assert copies == []
    assert not SERVER and not list(tmp_path.iterdir())


def test_a_mark_is_whole_or_not_there(tmp_path):
    run(tmp_path, (1,))
    assert [path.name for path in (tmp_path / "loggers").iterdir()] == ["wandb.json"]
    assert json.loads((tmp_path / "loggers" / "wandb.json").read_text()) == {
        "id": "run-1",
        "step": 1,
    }
