"""What is measured while it trains: the run is to the bit the same without, and so is what is measured twice."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import small

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.checkpoint.reading import find_checkpoints
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.data.records import open_dataset
from nepa_jax.mesh import make_mesh
from nepa_jax.objectives import nepa
from nepa_jax.run import online
from nepa_jax.run.metrics import read_metrics
from nepa_jax.step import TrainState, abstract_state
from nepa_jax.train import pretrain

ONLINE = dict(
    evals__online="true", evals__every_steps="4", evals__bank_images="40", evals__test_images="16"
)
CLASSES = ("a", "b", "c", "d")
NAMES = {f"eval/{what}/layer_{layer}" for what in ("linear", "knn", "rankme") for layer in (1, 2)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images whose brightness says their class: 40 to train on, 16 to test."""
    folder = tmp_path_factory.mktemp("data") / "set"
    for split, count in (("train", 40), ("validation", 16)):
        write_split(folder, split, count)
    return str(folder)


def write_split(folder: Path, split: str, count: int, labelled: bool = True) -> None:
    noise = small.images(count, seed=len(split)) // 4
    bright = noise + (48 * (np.arange(count, dtype=np.uint8) % 4))[:, None, None, None]
    examples = [
        (small.png(b), i % 4 if labelled else None, f"{i}.png") for i, b in enumerate(bright)
    ]
    prepare_arrays(examples, str(folder), split=split, classes=CLASSES if labelled else ())


def run(data: str, workdir: Path, stop: int | None = None, **changes: str) -> TrainState:
    return pretrain(small.config("nepa", data, **changes), str(workdir), stop_step=stop)


def trained(state: TrainState) -> dict[str, np.ndarray]:
    """All but the heads."""
    parts = dict(model=state.model, optimizer=state.opt_state, average=state.ema, step=state.step)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(parts).items()}


def rows(workdir: Path, prefix: str) -> list[dict[str, float]]:
    """Of every logged step, what is named so."""
    return [
        {name: value for name, value in row.items() if name.startswith((prefix, "step"))}
        for row in read_metrics(workdir / "metrics.jsonl")
    ]


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys() and one
    for name, value in one.items():
        np.testing.assert_array_equal(two[name], value, err_msg=name)


@pytest.fixture(scope="module")
def watched(data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    """Six steps under observation, and their end."""
    workdir = tmp_path_factory.mktemp("watched")
    return workdir, run(data, workdir, **ONLINE)


def test_a_run_is_bitwise_the_same_and_logs_what_it_holds(data, watched, tmp_path):
    workdir, seen = watched
    assert_same(trained(run(data, tmp_path)), trained(seen))
    assert rows(tmp_path, "train/") == rows(workdir, "train/")
    found = rows(workdir, "eval/")
    measured = [row["step"] for row in found if row.keys() == NAMES | {"step"}]
    assert measured == [1, 4, 6]  # first, every fourth, last
    assert all({f"eval/linear/layer_{layer}" for layer in (1, 2)} <= row.keys() for row in found)
    last = found[-1]
    assert last["eval/knn/layer_2"] > 0.9  # the brightness is easily seen
    assert all(1.0 <= last[f"eval/rankme/layer_{layer}"] <= 32.0 for layer in (1, 2))
    goodput = json.loads((workdir / "goodput.json").read_text())
    assert goodput[-1]["seconds"]["evaluation"] > 0


def test_switched_on_and_off_across_resumes_it_ends_as_ever(data, watched, tmp_path, capsys):
    """On, off, on: the heads that were left out begin anew, which is said, and all else goes on."""
    run(data, tmp_path, stop=2, **ONLINE)
    run(data, tmp_path, stop=4)
    assert "heads" not in find_checkpoints(str(tmp_path), 4)[0].meta.leaves
    capsys.readouterr()
    again = run(data, tmp_path, **ONLINE)
    assert_same(trained(watched[1]), trained(again))
    assert int(again.heads.count) == 2
    said = capsys.readouterr().out
    assert "linear heads (evals.online) begin anew: the checkpoint of step 4 has none" in said
    other = run(data, tmp_path, **ONLINE, evals__layers="(1,)", schedule__total_steps="7")
    assert "the checkpoint of step 6 has others" in capsys.readouterr().out
    assert other.heads.kernel.shape == (1, 32, 4)


@pytest.mark.trial
def test_a_killed_run_measures_again_and_ends_the_same(data, tmp_path):
    """Killed right after an evaluation, whose checkpoint may or may not be there yet."""
    steps = dict(schedule__total_steps="24", checkpoint__every_steps="4", **ONLINE)
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    done = run(data, calm, **steps)
    arguments = [sys.executable, "-m", "nepa_jax", "pretrain", f"--workdir={killed}",
                 *small.arguments("nepa", data, **steps)]  # fmt: skip
    for step in (8, 16):
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert any(line.startswith(f"step {step}, layers") for line in process.stdout)
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = run(data, killed, **steps)
    assert_same(trained(done), trained(again))
    assert_same(
        *({n: np.asarray(leaf) for n, leaf in named_leaves(s.heads).items()} for s in (done, again))
    )
    for prefix in ("train/", "eval/"):
        assert rows(killed, prefix) == rows(calm, prefix)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(evals__bank_images="41"), "evals.bank_images = 41: the split train has 40 images"),
        (dict(evals__test_images="17"), "evals.test_images = 17: .* has 16 images"),
        (dict(evals__test_split="test"), "evals.test_split = test: .* has no split 'test'"),
        (dict(evals__test_split="train"), "evals.test_split = train: these images are trained on"),
        (dict(evals__layers="(3,)"), r"evals.layers = \(3,\): heads stand on layers 1 … 2"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_measured_is_one_line_before_any_work(data, tmp_path, changes, said):
    with pytest.raises(UserError) as caught:
        run(data, tmp_path / "run", **(ONLINE | changes))
    (line,) = str(caught.value).splitlines()
    assert re.search(said, line) and "try" in line


def test_images_without_labels_give_rankme_alone(tmp_path, capsys):
    for split, count in (("train", 40), ("validation", 16)):
        write_split(tmp_path / "set", split, count, labelled=False)
    state = run(str(tmp_path / "set"), tmp_path / "run", **ONLINE, schedule__total_steps="3")
    assert state.heads is None
    assert "RankMe at layers 1, 2 alone, as the images have no labels" in capsys.readouterr().out
    names = rows(tmp_path / "run", "eval/")[-1].keys()
    assert names == {"step", "eval/rankme/layer_1", "eval/rankme/layer_2"}


def test_an_objective_that_gives_less_is_told_what_it_lacks(data, capsys):
    """Without features for heads kNN goes on; without all layers there is nothing to measure."""
    config = small.resolved("nepa", data__path=data, **ONLINE)
    records, mesh = open_dataset(data, "train"), make_mesh(config)
    parts = {name: getattr(nepa, name) for name in ("init_model", "loss", "encode", "describe")}

    def silent(*arguments):
        value, aux = nepa.loss(*arguments)
        return value, aux._replace(pooled=None)

    for loss, heads in ((nepa.loss, True), (silent, False)):
        objective = SimpleNamespace(**parts | {"loss": loss})
        target = online.watched(abstract_state(config, objective, mesh), config, objective, records)
        assert (target.heads is not None) == heads
        assert ("gives no features for linear heads" in capsys.readouterr().out) != heads
        assert not [*online.problems(config, objective, records)]
    last = SimpleNamespace(
        **parts | {"encode": lambda model, images, layer: nepa.encode(model, images)}
    )
    (line,) = online.problems(config, last, records)
    assert "wants [layers, B, N, D]" in line and "try evals.online=false" in line
