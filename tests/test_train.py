"""The loop: a run is the same run however often it is killed."""

import json
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small

from nepa_jax.base.errors import RunDiverged, UserError
from nepa_jax.checkpoint.reading import find_checkpoints
from nepa_jax.checkpoint.saving import read_state, state_parts
from nepa_jax.mesh import make_mesh
from nepa_jax.objectives.base import load_objective
from nepa_jax.run.metrics import read_metrics
from nepa_jax.step import abstract_state
from nepa_jax.train import pretrain


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "nepa_jax", *arguments]


def final_arrays(method: str, workdir: Path, step: int, **changes: str) -> dict[str, np.ndarray]:
    """Every array of a checkpoint: parameters, optimizer state, average, counters."""
    config = small.resolved(method, **changes)
    state = abstract_state(config, load_objective(config.objective.name), make_mesh(config))
    (saved,) = find_checkpoints(str(workdir), step)
    restored = read_state(saved, state)
    return {
        f"{part}/{name}": np.asarray(leaf)
        for part, leaves in state_parts(restored).items()
        for name, leaf in leaves.items()
    }


def logged(workdir: Path) -> list[dict[str, float]]:
    return read_metrics(workdir / "metrics.jsonl")


def assert_bitwise_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys() and any("/mu/" in name for name in a)
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


def test_a_run_killed_three_times_ends_bitwise_as_an_undisturbed_one(dataset, tmp_path):
    steps = dict(schedule__total_steps="40", checkpoint__every_steps="3")
    changes = dict(data__path=dataset, **steps)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    pretrain(small.config("nepa", dataset, **steps), str(calm))
    arguments = command(
        "pretrain", *small.arguments("nepa", dataset, **steps), f"--workdir={killed}"
    )
    chance = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        seen = chance.randrange(4, 10)
        for line in process.stdout:
            seen -= line.startswith("step ")
            if seen == 0:
                break
        time.sleep(chance.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert "resuming at step" in done.stdout
    assert_bitwise_equal(
        final_arrays("nepa", calm, 40, **changes), final_arrays("nepa", killed, 40, **changes)
    )
    calm_log, killed_log = logged(calm), logged(killed)
    assert [row["step"] for row in killed_log] == list(range(1, 41))
    assert [row["train/loss"] for row in killed_log] == [row["train/loss"] for row in calm_log]


@pytest.mark.trial
@pytest.mark.parametrize("notice", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_saves_and_exits_0(dataset, tmp_path, notice):
    steps = dict(schedule__total_steps="100000", checkpoint__every_steps="100000")
    arguments = command(
        "pretrain", *small.arguments("nepa", dataset, **steps), f"--workdir={tmp_path}"
    )
    run = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert any(line.startswith("step 3/") for line in run.stdout)
    second = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert (second.returncode, len(second.stderr.splitlines())) == (2, 1)
    assert f"is in use, a run is going on in it (process {run.pid} on " in second.stderr
    run.send_signal(notice)
    output, error = run.communicate(timeout=120)
    assert run.returncode == 0, error
    assert f"{notice.name}: saving, then stopping" in error
    (step,) = re.findall(r"preempted: saved step (\d+); the same command goes on", output)
    assert [saved.step for saved in find_checkpoints(str(tmp_path), None)] == [int(step)]


@pytest.mark.trial
def test_a_workdir_whose_checkpoints_are_gone_is_not_begun_again(dataset, tmp_path):
    config = small.config("nepa", dataset, schedule__total_steps="4")
    pretrain(config, str(tmp_path))
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    longer = small.config("nepa", dataset, schedule__total_steps="6")
    with pytest.raises(UserError, match="its checkpoints are gone"):
        pretrain(longer, str(tmp_path))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


@pytest.mark.trial
def test_an_average_can_be_switched_on_at_a_resume(dataset, tmp_path, capsys):
    pretrain(small.config("nepa", dataset, optim__ema_decay="none"), str(tmp_path))
    more = dict(schedule__total_steps="8", optim__ema_decay="0.5")
    state = pretrain(small.config("nepa", dataset, **more), str(tmp_path))
    assert "begins with the weights of step 6" in capsys.readouterr().out
    assert state.ema is not None and int(state.step) == 8


def test_metrics_hold_what_is_promised(dataset, tmp_path):
    pretrain(small.config("mae", dataset), str(tmp_path))
    rows = logged(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    promised = {
        "train/loss", "train/grad_norm", "train/lr", "train/loss_mean_patch", "train/skipped_steps",
        "perf/images_per_s", "time/step_s", "time/data_wait_s",
    }  # fmt: skip
    assert promised <= rows[-1].keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["schedule"]["total_steps"] == 6


def test_a_run_can_be_made_longer_and_says_so(dataset, tmp_path, capsys):
    pretrain(small.config("nepa", dataset), str(tmp_path))
    pretrain(small.config("nepa", dataset, schedule__total_steps="8"), str(tmp_path))
    assert "resuming at step 6, with schedule.total_steps: 6 -> 8" in capsys.readouterr().out
    assert logged(tmp_path)[-1]["step"] == 8


@pytest.mark.trial
@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("optim", "b1", 1.0), ("model", "pixel_std", (0.0, 0.0, 0.0))],
    ids=["update", "loss"],
)
def test_a_run_of_nothing_but_nan_is_not_done(section, key, value, dataset, tmp_path, monkeypatch):
    """Were such values let in: the weights stay as they began, and another start says so too."""
    monkeypatch.setattr("nepa_jax.config.validate", lambda *_: None)
    config = small.config("nepa", dataset, schedule__total_steps="3")
    config[section][key] = value
    for _ in range(2):
        with pytest.raises(RunDiverged, match="the last 3 of 3 steps"):
            pretrain(config, str(tmp_path))
        assert not (tmp_path / "DONE").exists()
    kept = final_arrays("nepa", tmp_path, 3)
    assert all(np.isfinite(array).all() for array in kept.values())


def test_a_workdir_of_another_run_is_refused(dataset, tmp_path):
    pretrain(small.config("nepa", dataset), str(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for change in (dict(model__depth="3"), dict(run__seed="5"), dict(data__batch_size="16")):
        with pytest.raises(UserError, match=r"holds another run.*run\.init_from"):
            pretrain(small.config("nepa", dataset, **change), str(tmp_path))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_changed_data_set_is_refused_unless_accepted(dataset, tmp_path):
    other = small.write_dataset(tmp_path / "other", seed=1)
    workdir = str(tmp_path / "run")
    pretrain(small.config("nepa", dataset), workdir)
    with pytest.raises(UserError, match="fingerprint"):
        pretrain(small.config("nepa", other, schedule__total_steps="7"), workdir)
    accepted = dict(schedule__total_steps="7", run__allow_data_change="true")
    pretrain(small.config("nepa", other, **accepted), workdir)


def test_a_log_that_cannot_be_written_is_one_clear_line(dataset, tmp_path):
    steps = dict(schedule__total_steps="40", checkpoint__every_steps="100")
    keys = small.arguments("nepa", dataset, **steps)
    arguments = command("pretrain", *keys, f"--workdir={tmp_path}")
    run = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    # Less than the log comes to, as a full disk. Set while the packages are imported.
    resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (4096, 4096))
    _, error = run.communicate(timeout=120)
    lines = error.splitlines()
    assert run.returncode == 2 and lines[-1].startswith("nepa-jax: error: ")
    assert "the log cannot be written" in lines[-1] and "free space there" in lines[-1]


def test_an_objective_that_does_not_exist_is_one_clear_line(dataset, tmp_path):
    with pytest.raises(UserError, match="no such module"):
        pretrain(
            small.config("nepa", dataset, objective__name="nepa_jax.objectives.nope"), str(tmp_path)
        )
    with pytest.raises(UserError, match="lacks init_model"):
        pretrain(small.config("nepa", dataset, objective__name="json"), str(tmp_path))
