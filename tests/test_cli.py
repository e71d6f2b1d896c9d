"""The command line as a user meets it: one clear line and exit code 2 for every mistake."""

import os
import subprocess
import sys

import pytest
import small

from nepa_jax.cli import main
from nepa_jax.data.prepare.split import prepare_arrays


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
    "verb",
    [["demo"], ["data", "prepare"], ["pretrain"], ["import"], ["export"], ["plan"], ["bench"]],
)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    assert stop.value.code == 0
    assert "example: " in capsys.readouterr().out


@pytest.mark.trial
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["pretain"], "invalid choice: 'pretain'"),
        (["export", "W"], "required: --format, --out"),
        (["export", "W", "--format=mae", "--out=o", "--step=x"], "x: give a whole number"),
        (["export", "W", "--format=mae", "--out=o", "--image-size=8000000"], "from 1 to 16,384"),
        (["data", "prepare", "W", "--out=o", "--shards=-1"], "from 1 to 100,000"),
        (["data", "prepare", "W", "--out="], "out is empty"),
        (["data", "inspect", ""], "path is empty"),
        (["pretrain", "--config=configs/nepa.py"], "--workdir is missing"),
        (["pretrain", "--config=configs/nepa.py", "--workdir="], "workdir is empty"),
        (["pretrain", "--config=", "--workdir=w"], "config is empty"),
        (["pretrain", "--config=configs/nepa.py", "--workdir=w", "--config.optim.lr"], "no value"),
        (["pretrain", "--config=configs/nepa.py", "--config.optim.lr", "--workdir=w"], "no value"),
        (["pretrain", "--config=configs/nepa.py", "--workdir=w", "stray"], "'stray' is unknown"),
        (["--vers"], "'--vers' is unknown"),
    ],
)
def test_an_argument_that_is_wrong_is_one_line(arguments, part, capsys):
    code, error = outcome(capsys, *arguments)
    assert code == 2 and part in error and error.count("\n") == 1


@pytest.mark.trial
def test_mistakes_are_answered_without_loading_jax(tmp_path):
    """Which takes seconds, and holds the devices."""
    code = """
import sys
from nepa_jax.cli import main
for arguments in (["--version"], [], ["pretrain", "--config=configs/mae.py", "--print-config"],
                  ["pretrain", "--config=configs/mae.py", "--config.optim.lr=-1", "--workdir=w"],
                  ["pretrain", "--config=configs/mae.py", "--config.optim.lrr=1", "--workdir=w"]):
    try:
        main(arguments)
    except SystemExit as stop:
        print("code", stop.code)
loaded = {"jax", "grain", "cv2"} & sys.modules.keys()
assert not loaded, loaded
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("code 2") == 2
    assert not list(tmp_path.iterdir())


def test_a_printed_config_runs_again(tmp_path, capsys):
    main(["pretrain", *small.arguments("mae", "somewhere"), "--print-config"])
    (tmp_path / "mine.json").write_text(capsys.readouterr().out)
    main(["pretrain", f"--config={tmp_path / 'mine.json'}", "--print-config"])
    assert capsys.readouterr().out == (tmp_path / "mine.json").read_text()


def test_alone_it_shows_first_steps_and_versions_are_told(capsys):
    main([])
    assert "nepa-jax demo" in capsys.readouterr().out
    main(["data"])
    assert "prepare" in capsys.readouterr().out
    main(["--version"])
    assert "jax " in capsys.readouterr().out


def test_every_recipe_is_listed_with_its_cost(capsys):
    main(["configs"])
    shown = capsys.readouterr().out
    row = next(
        line.split() for line in shown.splitlines() if line.startswith("configs/nepa.py:L/14")
    )
    assert row[1:6] == ["1024", "24", "16", "224/14", "256"]
    assert "presets: release, paper" in shown


@pytest.mark.trial
def test_all_mistakes_come_at_once_those_of_the_mesh_too(dataset, tmp_path, capsys):
    changes = dict(mesh__data="3", model__patch_size="5", objective__decoder_depth="-1")
    arguments = small.arguments("mae", dataset, **changes)
    code, error = outcome(capsys, "pretrain", *arguments, f"--workdir={tmp_path / 'w'}")
    assert code == 2 and not (tmp_path / "w").exists()
    for part in ("mesh = ", "model.patch_size = 5", "objective.decoder_depth = -1"):
        assert part in error


SUPERVISED = """from nepa_jax.config import load_config
def get_config(arg):
    c = load_config("configs/demo.py:mae")
    c.data.crop = "random"
    c.objective = dict(name="nepa_jax.objectives.supervised", num_classes=int(arg), pool="mean", causal=False)
    return c
"""


@pytest.mark.trial
@pytest.mark.parametrize(
    ("classes", "labelled", "part"),
    [("3", True, "try objective.num_classes=4"), ("4", False, "have no labels")],
)
def test_labels_that_cannot_be_learned_are_told_before_compiling(
    classes, labelled, part, dataset, tmp_path, capsys
):
    (tmp_path / "own.py").write_text(SUPERVISED)
    if not labelled:
        images = [(small.png(pixels), None, f"{i}.png") for i, pixels in enumerate(small.images(8))]
        dataset = str(tmp_path / "set")
        prepare_arrays(images, dataset)
    overrides = [f"--config.data.path={dataset}", "--config.data.batch_size=8"]
    code, error = outcome(
        capsys, "pretrain", f"--config={tmp_path / 'own.py'}:{classes}", *overrides,
        f"--workdir={tmp_path / 'w'}",
    )  # fmt: skip
    assert code == 2 and part in error


def test_the_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "nepa_jax", "--help"], capture_output=True, text=True, check=True
    )
    assert "pretrain" in done.stdout
