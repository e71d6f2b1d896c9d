"""Segmentation through the run's own loop: from an encoder's weights to mIoU and a picture."""

import csv
import json
import shutil
from dataclasses import replace

import jax
import masked
import numpy as np
import pytest
import small

import nepa_jax
from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.checkpoint.reading import find_checkpoints
from nepa_jax.checkpoint.saving import read_state
from nepa_jax.config import loader_config, resolve
from nepa_jax.data.loader import Loader
from nepa_jax.data.prepare.split import prepare
from nepa_jax.data.records import open_dataset
from nepa_jax.evals import miou
from nepa_jax.evals.segment_head import examples_of, resized
from nepa_jax.mesh import make_mesh, put_batch
from nepa_jax.objectives import segment
from nepa_jax.run import segmentation
from nepa_jax.run.metrics import read_metrics
from nepa_jax.step import abstract_state
from nepa_jax.train import pretrain
from nepa_jax.visualize import confusion

TRAINING = 24
scores_of = jax.jit(segment.window_scores)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    root = tmp_path_factory.mktemp("painted")
    tree = masked.write_tree(root / "tree", count=TRAINING, classes="red\ngreen\nblue\n")
    for split in ("train", "validation"):
        prepare(str(tree), str(root / "set"), split)
    return str(root / "set")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return small.write_run(tmp_path_factory.mktemp("encoder"), "nepa")


@pytest.fixture(scope="module")
def run(data, encoder, tmp_path_factory):
    """The workdir of a run that learns."""
    workdir = tmp_path_factory.mktemp("run")
    pretrain(learning(data, encoder), str(workdir))
    return workdir


def learning(data: str, encoder: str):
    return small.segmenting(
        "nepa", data, encoder, schedule__total_steps="30", optim__lr="3e-3",
        evals__every_steps="10", checkpoint__every_steps="10",
    )  # fmt: skip


def state_of(config, workdir, step):
    (saved,) = find_checkpoints(str(workdir), step)
    resolved = resolve(config, TRAINING, "cpu")
    return read_state(saved, abstract_state(resolved, segment, make_mesh(resolved)))


def test_it_learns_what_colours_tell(run):
    rows = read_metrics(run / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert np.mean(losses[-3:]) < 0.85 * losses[0]
    tested = {row["step"]: row["eval/miou"] for row in rows if "eval/miou" in row}
    assert list(tested) == [10, 20, 30] and tested[30] > 0.8
    best = json.loads((run / "eval" / "best.json").read_text())
    assert best["by"] == "miou" and best["score"] == pytest.approx(max(tested.values()))


@pytest.mark.chaos
def test_a_run_that_is_stopped_ends_bitwise_the_same(run, data, encoder, tmp_path):
    """With the running moments of the batch norms."""
    config = learning(data, encoder)
    for stop in (1, 17, None):
        pretrain(config, str(tmp_path), stop_step=stop)
    calm, stopped = (named_leaves(state_of(config, folder, 30)) for folder in (run, tmp_path))
    names = {name for name in calm if name.startswith("extra/")}
    assert len(names) == 2 * len(upernet_norms(config)) and names <= stopped.keys()
    for name, leaf in calm.items():
        np.testing.assert_array_equal(leaf, stopped[name], err_msg=name)
    tests = [
        [(row["step"], row["eval/miou"]) for row in read_metrics(folder / "metrics.jsonl") if "eval/miou" in row]
        for folder in (run, tmp_path)
    ]  # fmt: skip
    assert tests[0] == tests[1]


def upernet_norms(config):
    config = resolve(config, TRAINING, "cpu")
    return jax.eval_shape(
        lambda: segment.init_extra(config, segment.init_model(config, small.nnx.Rngs(0)))
    )


def test_what_is_counted_is_a_plain_pass_over_every_pixel(run, data, encoder):
    """Windows put together by hand."""
    state = state_of(learning(data, encoder), run, 30)
    records = open_dataset(data, "validation")
    counts = np.zeros((3, 3), np.int64)
    for example in examples_of(records, 16, 3):
        height, width = example.image.shape[:2]
        total, seen = np.zeros((height, width, 3)), np.zeros((height, width, 1))
        for left in (0, width - 16):  # 20 x 24 px become 16 x 19
            scores = scores_of(state.model, state.extra, example.image[None, :, left : left + 16])
            total[:, left : left + 16] += resized(np.asarray(scores[0]), (16, 16))
            seen[:, left : left + 16] += 1
        found = resized((total / seen).astype(np.float32), example.mask.shape).argmax(-1)
        counts += miou.confusion(example.mask, found, 3)
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["eval/miou"] == pytest.approx(miou.scores(counts)["miou"], abs=2e-3)
    with (run / "eval" / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["red", "green", "blue"]
    assert [int(row["pixels"]) for row in rows] == counts.sum(axis=1).tolist()


def test_one_window_is_the_whole_image(data, encoder, tmp_path):
    """Of square images as large as the window, the scores are those of a plain call."""
    tree = masked.write_tree(
        tmp_path / "tree", count=8, size=(16, 16), classes="red\ngreen\nblue\n"
    )
    prepare(str(tree), str(tmp_path / "set"), "validation")
    config = resolve(learning(data, encoder), TRAINING, "cpu")
    with config.unlocked():
        config.data.path = str(tmp_path / "set")
    mesh, rngs = make_mesh(config), small.nnx.Rngs(1)
    model = segment.init_model(config, rngs)
    extra = segment.init_extra(config, model)
    tested = segmentation.Segmentation(
        segment,
        mesh,
        open_dataset(str(tmp_path / "set"), "validation"),
        16,
        3,
        None,
        1,
        1,
        None,
        tmp_path,
    )
    found = tested.found(model, extra)
    for example, prediction in found.shown:
        scores = scores_of(model, extra, example.image[None])[0]
        np.testing.assert_array_equal(prediction, np.argmax(scores, axis=-1))
    assert found.counts.sum() == len(found.shown) * 256


def test_the_picture(run):
    files = confusion.draw_of(run / "eval")
    assert {"segmentation.png", "per_class.csv", "examples.npz", "best.json"} <= set(files)


def test_the_encoder_of_a_segmenter_goes_on(run):
    """Evaluations and other fine-tuning take it as any other."""
    loaded = nepa_jax.load(str(run))
    features = loaded.objective.encode(loaded.model, small.images(2), -1)
    assert features.patches.shape == (2, 16, 32)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"objective__num_classes": "5"}, "masks have 3 classes; try --config.objective.num_classes=3"),
        ({"run__init_from": ""}, "run.init_from is not set"),
        ({"data__masks": "false", "data__max_class_share": "1.0"}, "data.masks = False: "),
        ({"evals__test_split": "holdout"}, "evals.test_split = holdout: .* has no split 'holdout'"),
        ({"evals__test_split": "train"}, "these images are trained on"),
        ({"evals__validate_images": "99"}, "the split validation has 8 images"),
        ({"model__embed_dim": "64"}, "is another encoder .*try --config.model.embed_dim=32"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line_before_anything_is_compiled(
    changes, told, data, encoder, tmp_path, monkeypatch
):
    monkeypatch.setattr("nepa_jax.run.setup.make_update", None)
    config = small.segmenting("nepa", data, encoder, **changes)
    with pytest.raises(UserError, match=told):
        pretrain(config, str(tmp_path))


def test_splits_of_other_classes_and_sets_without_masks(data, encoder, tmp_path):
    config = resolve(small.segmenting("nepa", data, encoder), TRAINING, "cpu")
    others = replace(open_dataset(data, "train"), classes=("red", "green", "gray"))
    (told,) = segmentation.problems(config, segment, others)
    assert "has other classes (3: red, green, blue) than train (3: red, green, gray)" in told
    config = small.segmenting("nepa", data, encoder)
    plain = small.write_labelled(tmp_path / "plain", {"train": 24})
    config.data.path = plain
    with pytest.raises(UserError, match="has no masks: prepare a folder with images/SPLIT"):
        pretrain(config, str(tmp_path / "run"))


def test_values_beyond_the_classes_are_told(data, encoder, tmp_path):
    broken = tmp_path / "set"
    shutil.copytree(data, broken)
    manifest = json.loads((broken / "dataset.json").read_text())
    manifest["classes"] = ["red", "green"]
    (broken / "dataset.json").write_text(json.dumps(manifest))
    config = small.segmenting("nepa", str(broken), encoder, objective__num_classes="2")
    with (
        Loader(loader_config(config)) as loader,
        pytest.raises(UserError, match="mask has the value 2, and there are 2 classes"),
    ):
        for step in range(5):  # a few bad records are replaced
            loader.batch(step)


def test_moments_are_those_of_all_devices(data, encoder):
    """A batch over eight devices or on one: the same running moments."""
    config = resolve(learning(data, encoder), TRAINING, "cpu")
    pixels = small.images(8)
    batch = {"image": pixels, "mask": np.arange(8 * 256).reshape(8, 16, 16).astype(np.uint8) % 3}
    found = []
    for devices in (jax.devices(), jax.devices()[:1]):
        mesh = make_mesh(config, devices)
        state, update = small.started(config, segment, mesh)
        state, _ = update(state, put_batch(batch, mesh))
        found.append(named_leaves(state.extra))
    for name, leaf in found[0].items():
        np.testing.assert_allclose(leaf, found[1][name], rtol=2e-4, atol=2e-5, err_msg=name)
