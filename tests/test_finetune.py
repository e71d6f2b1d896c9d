"""Fine-tuning through the run's own loop: from weights to predictions."""

import csv
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

import nepa_jax
from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.checkpoint.reading import find_checkpoints
from nepa_jax.checkpoint.saving import read_state
from nepa_jax.cli import main
from nepa_jax.config import evaluation_data, loader_config, resolve
from nepa_jax.data.loader import Loader, iter_epoch
from nepa_jax.mesh import make_mesh
from nepa_jax.objectives import supervised
from nepa_jax.run.metrics import read_metrics
from nepa_jax.step import abstract_state
from nepa_jax.train import pretrain

IMAGES = {"train": 40, "validation": 21}  # the last batch has five rows of eight


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return small.write_labelled(tmp_path_factory.mktemp("labelled") / "set", IMAGES)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return small.write_run(tmp_path_factory.mktemp("encoder"), "nepa")


@pytest.fixture(scope="module")
def run(data, encoder, tmp_path_factory):
    """The workdir of a run of six steps."""
    workdir = tmp_path_factory.mktemp("run")
    pretrain(small.finetuning("nepa", data, encoder), str(workdir))
    return workdir


def state_arrays(config, workdir, step) -> dict[str, np.ndarray]:
    (saved,) = find_checkpoints(str(workdir), step)
    resolved = resolve(config, IMAGES["train"], "cpu")
    state = read_state(saved, abstract_state(resolved, supervised, make_mesh(resolved)))
    return {name: np.asarray(leaf) for name, leaf in named_leaves(state).items()}


def test_a_run_that_is_stopped_again_and_again_ends_bitwise_the_same(run, data, encoder, tmp_path):
    """Also after the first step, when the average has just begun, and the one after it."""
    config = small.finetuning("nepa", data, encoder)
    for stop in (1, 2, 5, None):
        pretrain(config, str(tmp_path), stop_step=stop)
    calm, stopped = (state_arrays(config, folder, 6) for folder in (run, tmp_path))
    assert any(name.startswith("ema/") for name in calm)
    for name, leaf in calm.items():
        np.testing.assert_array_equal(leaf, stopped[name], err_msg=name)
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (run, tmp_path)]
    evals = [
        [{k: v for k, v in row.items() if k.startswith("eval/")} for row in each] for each in rows
    ]
    assert evals[0] == evals[1]
    assert (run / "eval" / "predictions.csv").read_text() == (
        tmp_path / "eval" / "predictions.csv"
    ).read_text()


def measured_at_once(workdir, data, ema: bool) -> dict[str, np.ndarray]:
    """All images of the split in one batch on one device."""
    loaded = nepa_jax.load(str(workdir), ema=ema)
    cut = replace(evaluation_data(loaded.config), path=data, split="validation", batch_size=24)
    (made,) = iter_epoch(cut)
    there = made.account.valid
    batch = {name: jnp.asarray(rows[there]) for name, rows in made.batch.items()}
    return jax.tree.map(np.asarray, supervised.measure(loaded.model, batch)) | {
        "label": np.asarray(batch["label"])
    }


def test_every_image_counts_once_whatever_the_batch(run, data):
    last = read_metrics(run / "metrics.jsonl")[-1]
    for prefix, ema in (("", False), ("ema_", True)):
        wanted = measured_at_once(run, data, ema)
        assert len(wanted["loss"]) == IMAGES["validation"]
        for name in ("loss", "top1", "top5"):
            np.testing.assert_allclose(last[f"eval/{prefix}{name}"], wanted[name].mean(), rtol=1e-5)


def test_it_is_evaluated_when_it_is_due_and_at_the_end(run):
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if "eval/top1" in row] == [2, 4, 6]


def test_the_best_checkpoint_stays(data, encoder, tmp_path, monkeypatch):
    """Of scores that rise and fall: kept beside the last one, and found again by a restart."""
    scores = {2: 0.25, 4: 0.75, 6: 0.5, 8: 0.5, 10: 0.75}
    found = []

    def means(rows):
        found.append(0)
        step = 2 * ((len(found) + 1) // 2)  # of the weights, then of the average
        return {"loss": 1.0, "top1": scores[step], "top5": 1.0}

    monkeypatch.setattr(supervised, "means", means)
    changes = dict(
        schedule__total_steps="10", checkpoint__every_steps="100", checkpoint__keep_last="1"
    )
    config = small.finetuning("nepa", data, encoder, **changes)
    pretrain(config, str(tmp_path), stop_step=6)
    best = tmp_path / "eval" / "best.json"
    assert json.loads(best.read_text()) == {"step": 4, "score": 0.75, "by": "top1"}
    assert [one.step for one in find_checkpoints(str(tmp_path), None)] == [4, 6]
    pretrain(config, str(tmp_path))
    assert json.loads(best.read_text())["step"] == 4  # a tie is left to the earlier one
    assert [one.step for one in find_checkpoints(str(tmp_path), None)] == [4, 10]


def test_no_checkpoint_is_the_best_by_a_shortened_evaluation(data, encoder, tmp_path):
    changes = dict(schedule__total_steps="3", evals__validate_images="8")
    pretrain(small.finetuning("nepa", data, encoder, **changes), str(tmp_path))
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["eval/top1"] in [n / 8 for n in range(9)]
    assert not (tmp_path / "eval" / "best.json").exists()


def test_predictions_and_classes_are_written(run, data):
    with (run / "eval" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    wanted = measured_at_once(run, data, ema=True)
    assert [int(row["record"]) for row in rows] == list(range(IMAGES["validation"]))
    assert [row["prediction"] for row in rows] == ["abcd"[k] for k in wanted["prediction"]]
    assert [row["label"] for row in rows] == ["abcd"[k] for k in wanted["label"]]
    with (run / "eval" / "per_class.csv").open() as file:
        classes = list(csv.DictReader(file))
    assert sum(int(row["images"]) for row in classes) == IMAGES["validation"]
    correct = sum(row["prediction"] == row["label"] for row in rows)
    assert sum(int(row["correct"]) for row in classes) == correct


def test_the_optimizers_table_is_saved(run):
    with (run / "optimizer.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["place"] for row in rows} == {
        "patch_embed", "embeddings", "block 1", "block 2", "top", "head",
    }  # fmt: skip
    assert all(float(row["peak_lr"]) == 0 for row in rows if row["place"] == "patch_embed")


def test_the_frozen_patch_embedding_is_the_encoders(run, encoder):
    theirs, ours = (named_leaves(nepa_jax.load(str(path)).model) for path in (encoder, run))
    for name in theirs:
        same = np.array_equal(theirs[name], ours[name])
        assert same == name.startswith("vit/patch_embed/"), name


def line(arguments, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len([each for each in lines if each.startswith("nepa-jax: error")]) == 1
    return lines[-1]


def test_a_config_of_pretraining_is_one_clear_line(data, capsys, tmp_path):
    arguments = ["finetune", *small.arguments("nepa", data), f"--workdir={tmp_path / 'run'}"]
    told = line(arguments, capsys)
    assert "is for `nepa-jax pretrain`" in told and "configs/finetune.py:nepa,B/14" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective__num_classes": "5"}, "has 4 classes; try objective.num_classes=4"),
        ({"run__init_from": ""}, "run.init_from is not set.*finetune.py:scratch"),
        ({"evals__test_split": "holdout"}, "evals.test_split = holdout: .* has no split 'holdout'"),
        ({"evals__test_split": "train"}, "these images are trained on"),
        ({"run__init_ema": "true"}, "holds no average.*run.init_ema=false"),
        (
            {"model__embed_dim": "64", "model__depth": "3"},
            "is another encoder .*try --config.model.embed_dim=32 --config.model.depth=2",
        ),
        ({"model__posemb": "sincos"}, "have none; try --config.model.posemb=none"),
        ({"optim__layer_decay_end": "1.0"}, "optim.layer_warmup"),
    ],
)
def test_a_mistake_is_one_clear_line_before_anything_is_compiled(
    changes, told, data, encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr("nepa_jax.run.setup.make_update", None)
    config = small.finetuning("nepa", data, encoder)
    small.apply_overrides(config, {key.replace("__", "."): v for key, v in changes.items()})
    with pytest.raises(UserError, match=told):
        pretrain(config, str(tmp_path))


def test_labels_out_of_range_are_told(data, encoder, tmp_path):
    broken = tmp_path / "set"
    shutil.copytree(data, broken)
    manifest = json.loads((broken / "dataset.json").read_text())
    manifest["classes"] = ["a", "b"]
    (broken / "dataset.json").write_text(json.dumps(manifest))
    config = small.finetuning("nepa", str(broken), encoder)
    config.objective.num_classes = 2
    with (
        Loader(loader_config(config)) as loader,
        pytest.raises(UserError, match=r"label [23] in a set of 2 classes"),
    ):
        for step in range(5):  # a few bad records are replaced
            loader.batch(step)
