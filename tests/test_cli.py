"""The command line as a user meets it: one clear line and exit code 2 for every mistake."""

import os
import subprocess
import sys

import pytest
import small

from nepa_jax.cli import main


def outcome(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and what stands on stderr."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (dict(optim__lrr="1"), ["optim.lrr", "did you mean optim.lr"]),
        (dict(data__batch_size="many"), ["data.batch_size = many", "whole number"]),
        (dict(model__patch_size="5"), ["model.patch_size = 5", "does not divide", "try"]),
        (dict(data__path="/no/such/set"), ["/no/such/set", "nepa-jax data prepare"]),
        (dict(data__split="test"), ["test", "train"]),
        (dict(data__batch_size="64"), ["64", "40"]),
        (dict(mesh__data="3"), ["mesh", "8 device(s)"]),
        (dict(objective__name="nope.nope"), ["nope.nope", "no such module"]),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(change, parts, dataset, tmp_path, capsys):
    workdir = tmp_path / "run"
    code, error = outcome(
        capsys, "pretrain", *small.arguments("nepa", dataset, **change), f"--workdir={workdir}"
    )
    assert code == 2
    assert error.startswith("nepa-jax: error: ") and "Traceback" not in error
    for part in parts:
        assert part in error
    assert {path.name for path in workdir.rglob("*")} <= {"run.lock"}  # which is nobody's now


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write everywhere")
def test_a_workdir_without_permission_is_one_line(dataset, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    workdir = tmp_path / "closed" / "run"
    code, error = outcome(
        capsys, "pretrain", *small.arguments("nepa", dataset), f"--workdir={workdir}"
    )
    assert code == 2 and "cannot be written" in error


def test_a_workdir_that_is_a_file_is_one_line(dataset, tmp_path, capsys):
    (tmp_path / "run").write_text("")
    code, error = outcome(
        capsys, "pretrain", *small.arguments("nepa", dataset), f"--workdir={tmp_path / 'run'}"
    )
    assert code == 2 and "cannot be written" in error


def test_a_url_is_no_place_to_write_to(dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a folder gs:/bucket would appear
    place = "gs://bucket/run"
    for verb in (
        ["pretrain", *small.arguments("nepa", dataset), f"--workdir={place}"],
        ["import", "x.pth", "--format=mae", f"--workdir={place}"],
        ["export", "run", "--format=mae", f"--out={place}"],
        ["demo", f"--workdir={place}"],
    ):
        code, error = outcome(capsys, *verb)
        assert code == 2 and place in error and "mount the bucket" in error
    assert not list(tmp_path.iterdir())


def test_unknown_arguments_are_refused(capsys):
    assert outcome(capsys, "data", "inspect", "somewhere", "--shard=3")[0] == 2
    code, error = outcome(capsys, "pretrain", "--config=configs/nepa.py", "--workdir=w", "--lr=3")
    assert code == 2 and "--lr=3" in error
    assert outcome(capsys, "pretrain", "--config=configs/nope.py", "--workdir=w")[0] == 2


@pytest.mark.parametrize(
    "verb", [["demo"], ["data", "prepare"], ["pretrain"], ["import"], ["export"], ["bench"]]
)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    assert "example: " in capsys.readouterr().out


def test_the_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "nepa_jax", "--help"], capture_output=True, text=True, check=True
    )
    assert "pretrain" in done.stdout
