"""Pictures while it trains: of the same images each time, on any mesh, and the run stays the same run."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from PIL import Image

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.data.records import open_dataset
from nepa_jax.mesh import make_mesh
from nepa_jax.objectives.base import load_objective
from nepa_jax.objectives.pictured import Pictures
from nepa_jax.run.metrics import read_metrics
from nepa_jax.run.pictures import GAP, LEAST, NUM_IMAGES, PicturesHook, drawing, fixed_images, page
from nepa_jax.train import pretrain

EVERY = {"log__pictures_every_steps": "2"}


def arrays(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def files(workdir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (workdir / "pictures").glob("*")}


@pytest.fixture(scope="module", params=["mae", "nepa"])
def runs(request, dataset, tmp_path_factory):
    """A method, and runs of six steps: without pictures and with."""
    found = {}
    for name, changes in {"without": {}, "with": EVERY}.items():
        workdir = tmp_path_factory.mktemp(name)
        found[name] = (
            workdir,
            pretrain(small.config(request.param, dataset, **changes), str(workdir)),
        )
    return request.param, found


def test_not_a_bit_of_the_run_changes(runs):
    _, found = runs
    (plain, expected), (drawn, state) = found["without"], found["with"]
    expected, state = arrays(expected), arrays(state)
    assert expected.keys() == state.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value, err_msg=name)
    losses = [
        [row["train/loss"] for row in read_metrics(w / "metrics.jsonl")] for w in (plain, drawn)
    ]
    assert losses[0] == losses[1]
    assert not (plain / "pictures").exists()
    assert sorted(files(drawn)) == [f"step_{step:08}.png" for step in (2, 4, 6)]


def test_a_restart_draws_the_same_again(runs, dataset, tmp_path):
    method, found = runs
    config = small.config(method, dataset, **EVERY)
    pretrain(config, str(tmp_path), stop_step=4)
    (tmp_path / "pictures" / "step_00000006.png").write_bytes(b"of a start that was killed")
    pretrain(config, str(tmp_path))
    assert files(tmp_path) == files(found["with"][0])


@pytest.mark.parametrize("mesh", [{"fsdp": "8"}, {"fsdp": "2", "tensor": "2"}], ids=str)
@pytest.mark.parametrize("method", ["mae", "nepa"])
def test_every_mesh_draws_the_same(method, mesh):
    images, drawn = small.images(NUM_IMAGES), []
    for sizes in ({}, mesh):
        config = small.resolved(method, **{f"mesh__{axis}": size for axis, size in sizes.items()})
        objective, made = load_objective(config.objective.name), make_mesh(config)
        state, _ = small.started(config, objective, made)
        found = drawing(objective, state.model, images, made)(state.model)
        assert found.tiles.is_fully_replicated
        drawn.append(np.asarray(found.tiles).astype(int))
    assert np.abs(drawn[0] - drawn[1]).max() <= 1  # rounded from sums in another order


def test_the_images_are_the_same_whatever_the_step_and_from_all_over_the_split(dataset):
    config = small.resolved("mae", data__path=dataset, data__crop_pct="1.0")
    records, made = open_dataset(dataset, "train"), small.images(40)
    numbers = [int(Path(records[place].name).stem) for place in (0, 7, 15, 23, 31, 39)]
    np.testing.assert_array_equal(fixed_images(config, records), made[numbers])


class Asked:
    """A logger and an objective's drawing at once."""

    def __init__(self):
        self.drawn, self.steps = [], []

    def __call__(self, model):
        self.drawn.append(model)
        return Pictures(jnp.zeros((1, 1, 8, 8, 3), jnp.uint8), ("image",))

    def picture(self, step, pixels):
        self.steps.append(step)


def test_they_are_handed_on_when_the_metrics_of_their_step_are():
    asked = Asked()
    hook = PicturesHook(3, asked, [asked])
    state = type("State", (), {"model": "weights", "step": 6})
    seen = []
    for step in range(1, 7):
        hook(step, state, {})
        seen.append((len(asked.drawn), list(asked.steps)))
    assert seen == [(0, []), (0, []), (1, []), (1, []), (1, [3]), (2, [3])]
    hook.close(state)
    assert asked.steps == [3, 6]


def test_a_page_has_a_row_for_each_image_under_titles():
    tiles = jax.random.randint(jax.random.key(0), (2, 3, 8, 12, 3), 0, 256).astype(jnp.uint8)
    pixels = page(Pictures(tiles, ("a", "b\nc", "d")))
    factor = LEAST // 12
    height, width = 8 * factor, 12 * factor
    top = pixels.shape[0] - 2 * (height + GAP)
    assert pixels.shape[1] == 3 * width + 2 * GAP and pixels.dtype == np.uint8
    for row in range(2):
        for column in range(3):
            y, x = top + row * (height + GAP), column * (width + GAP)
            tile = pixels[y : y + height : factor, x : x + width : factor]
            np.testing.assert_array_equal(tile, tiles[row, column])
    assert (pixels[:top] < 255).any() and (pixels[:top] > 200).mean() > 0.5
    assert Image.fromarray(pixels).size == pixels.shape[1::-1]


@pytest.mark.trial
def test_an_objective_without_pictures_is_told_before_any_work(dataset, tmp_path):
    config = small.config("nepa", dataset, **EVERY)
    config.objective.name = "nepa_jax.objectives.encoder"
    with pytest.raises(UserError, match=r"pictures_every_steps = 2: .*encoder draws none; try 0"):
        pretrain(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.trial
@pytest.mark.parametrize(
    ("chosen", "line"),
    [
        ("wandbb", "there is no logger wandbb; try some of tensorboard, wandb, mlflow, trackio"),
        (
            "wandb, mlflow",
            "wandb and mlflow cannot be found; try pip install 'nepa-jax[wandb,mlflow]'",
        ),
    ],
)
def test_a_logger_that_is_not_there_is_told_before_any_work(
    dataset, tmp_path, monkeypatch, chosen, line
):
    monkeypatch.setattr(
        "nepa_jax.config.rules.exists", lambda name: name not in ("wandb", "mlflow")
    )
    with pytest.raises(UserError) as caught:
        pretrain(small.config("nepa", dataset, log__loggers=chosen), str(tmp_path / "run"))
    assert f"log.loggers = {chosen}: {line}" in str(caught.value)
    assert not (tmp_path / "run").exists()
