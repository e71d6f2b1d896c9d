"""What an objective is: one of a user's own, with a teacher that its loss uses and a centre that moves.

It lies in a package that is not ours, and nothing of ours knows of it but its name in the config.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
import small
from ml_collections import ConfigDict

import nepa_jax
from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.mesh import make_mesh, put_batch
from nepa_jax.objectives.base import load_objective
from nepa_jax.run.metrics import read_metrics
from nepa_jax.step import TrainState
from nepa_jax.train import pretrain

TOY = '''
"""A student sees patches under noise and says what its teacher says of the clean ones, less a centre."""

import jax
import jax.numpy as jnp
from flax import nnx

from nepa_jax.base.sections import Bound, section_problems
from nepa_jax.models.vit import patchify
from nepa_jax.objectives.base import Alarm, Aux, Description, Features, Pictures, image_keys

DEFAULTS = dict(name="", teacher_momentum=0.75)
BOUNDS = {"teacher_momentum": Bound("[0, 1]", "0.75")}

alarms = (Alarm(lambda scalars: scalars["train/reach"] < 1e9, "the toy does not reach far"),)


class Toy(nnx.Module):
    def __init__(self, rngs):
        self.map = nnx.Linear(
            48, 8, rngs=rngs, kernel_metadata={"axes": ("patch", "embed")}, bias_metadata={"axes": ("embed",)}
        )


def problems(config):
    return list(section_problems("objective", config.objective, DEFAULTS, BOUNDS).values())


def init_model(config, rngs):
    return Toy(rngs)


def init_extra(config, model):
    return {"teacher": model, "centre": jnp.zeros(8), "momentum": config.objective.teacher_momentum}


def loss(model, extra, batch, key):
    patches = patchify(batch["image"] / 255, 4)
    keys = image_keys(key, batch, "noise")
    noise = jax.vmap(lambda key: jax.random.normal(key, patches.shape[1:]))(keys)
    targets = extra["teacher"].map(patches)
    errors = model.map(patches + noise) - (targets - extra["centre"])
    reach = jnp.mean(jnp.abs(targets))
    return jnp.mean(errors**2), Aux({"reach": reach}, jnp.mean(targets, axis=(0, 1)))


def after_update(extra, model, aux, step):
    follow = lambda old, new: extra["momentum"] * old + (1 - extra["momentum"]) * new
    teacher = jax.tree.map(follow, extra["teacher"], model)
    return extra | {"teacher": teacher, "centre": follow(extra["centre"], aux.carry)}


def encode(model, images, layer=-1):
    return Features(model.map(patchify(images / 255, 4)), None, (4, 4))


def pictures(model, images):
    brightness = jnp.mean(patchify(images / 255, 4), axis=-1).reshape(-1, 4, 4, 1)
    shown = (255 * brightness).repeat(4, axis=1).repeat(4, axis=2).repeat(3, axis=3)
    return Pictures(jnp.stack([images, shown.astype(jnp.uint8)], axis=1), ("image", "brightness"))


def describe(config):
    return Description(tokens=16, parameters=49 * 8, flops=6.0 * 16 * 48 * 8)
'''
NAME = "lab_of_a_user.toy"


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("path")
    (folder / "lab_of_a_user").mkdir()
    (folder / "lab_of_a_user" / "__init__.py").touch()
    (folder / "lab_of_a_user" / "toy.py").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


def of_toy(config: ConfigDict, **objective: float) -> ConfigDict:
    with config.unlocked():
        config.objective = ConfigDict(dict(name=NAME, teacher_momentum=0.75) | objective)
    return config


def toy_config(dataset: str, **changes: str) -> ConfigDict:
    return of_toy(small.config("nepa", dataset, optim__base_lr="1.0", **changes))


def arrays(tree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}


def trained(steps: int = 3, **changes: str) -> tuple[list[dict[str, np.ndarray]], dict[str, float]]:
    """The arrays of a state before each of a few steps and after the last one, whose metrics too."""
    config = of_toy(small.resolved("nepa", **changes))
    objective, mesh = load_objective(NAME), make_mesh(config)
    state, update = small.started(config, objective, mesh)
    seen = [arrays(state)]
    for step in range(steps):
        batch = put_batch({"image": small.images(config.data.batch_size, seed=step)}, mesh)
        state, metrics = update(state, batch)
        seen.append(arrays(state))
    return seen, jax.device_get(metrics)


def assert_close(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys() and "extra/teacher/map/kernel" in a
    for name, value in a.items():
        np.testing.assert_allclose(b[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory) -> tuple[Path, TrainState]:
    """A run of four steps, and its last state."""
    workdir = tmp_path_factory.mktemp("straight")
    return workdir, pretrain(toy_config(dataset, schedule__total_steps="4"), str(workdir))


def test_it_trains_through_the_untouched_loop_and_is_read_by_its_name(dataset, tmp_path):
    state = pretrain(toy_config(dataset, schedule__total_steps="30"), str(tmp_path))
    losses = [row["train/loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < losses[0] / 2
    images = small.images(2)
    found = nepa_jax.load(str(tmp_path), objective=NAME).encode(images)
    wanted = load_objective(NAME).encode(state.model, images)
    np.testing.assert_allclose(found.patches, wanted.patches, rtol=1e-5, atol=1e-6)
    assert found.patches.shape == (2, 16, 8) and found.cls is None and found.grid == (4, 4)


def test_it_draws_while_it_trains(dataset, tmp_path):
    pretrain(toy_config(dataset, log__pictures_every_steps="3"), str(tmp_path))
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["step_00000003.png", "step_00000006.png"]


def test_two_steps_and_a_resume_are_the_straight_run_to_the_bit(dataset, tmp_path, straight):
    config = toy_config(dataset, schedule__total_steps="4")
    assert int(pretrain(config, str(tmp_path), stop_step=2).step) == 2
    resumed, whole = arrays(pretrain(config, str(tmp_path))), arrays(straight[1])
    assert resumed.keys() == whole.keys() and "extra/teacher/map/kernel" in whole
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_the_loss_sees_the_teacher_which_follows_as_the_objective_says():
    """By hand: what the teacher says of the batch moves the centre, then the new weights the teacher."""
    seen, _ = trained()
    for step, (before, after) in enumerate(pairwise(seen)):
        patches = small.images(8, seed=step).reshape(8, 4, 4, 4, 4, 3).swapaxes(2, 3) / 255
        kernel, bias = (before[f"extra/teacher/map/{part}"] for part in ("kernel", "bias"))
        targets = (patches.reshape(8, 16, 48) @ kernel + bias).mean((0, 1))
        moved = 0.75 * before["extra/centre"] + 0.25 * targets
        np.testing.assert_allclose(after["extra/centre"], moved, rtol=1e-4, atol=1e-6)
        followed = 0.75 * kernel + 0.25 * after["model/map/kernel"]
        np.testing.assert_allclose(after["extra/teacher/map/kernel"], followed, rtol=1e-5)
    assert not np.array_equal(followed, seen[0]["extra/teacher/map/kernel"])


def test_microbatches_carry_the_same_to_the_update():
    """All see the same teacher, and the centre moves once, by the mean of all images."""
    (*_, whole), logged = trained(data__batch_size="16")
    (*_, parts), same = trained(data__batch_size="16", optim__accum_steps="2")
    assert_close(whole, parts)
    for name, value in logged.items():
        np.testing.assert_allclose(same[name], value, rtol=1e-4, err_msg=name)


def test_a_step_that_is_thrown_away_moves_neither_teacher_nor_centre():
    config = of_toy(small.resolved("nepa"))
    objective, mesh = load_objective(NAME), make_mesh(config)
    state, update = small.started(config, objective, mesh)
    state, _ = update(state, put_batch({"image": small.images(8)}, mesh))
    before = arrays(state.extra)
    poisoned = np.full((8, 16, 16, 3), np.nan, np.float32)
    state, metrics = update(state, put_batch({"image": poisoned}, mesh))
    assert int(metrics["skipped_steps"]) == 1
    for name, value in arrays(state.extra).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_a_teacher_is_spread_over_the_devices_as_its_student_is():
    config = of_toy(small.resolved("nepa", mesh__fsdp="8"))
    objective, mesh = load_objective(NAME), make_mesh(config)
    state, _ = small.started(config, objective, mesh)
    for student, teacher in zip(
        jax.tree.leaves(state.model), jax.tree.leaves(state.extra["teacher"]), strict=True
    ):
        assert teacher.sharding == student.sharding and not teacher.sharding.is_fully_replicated
    (*_, spread), _ = trained(mesh__fsdp="8")
    (*_, whole), _ = trained()
    assert_close(whole, spread)


def test_a_run_that_begins_with_given_weights_has_a_teacher_of_these(dataset, tmp_path, straight):
    workdir, state = straight
    config = toy_config(dataset, run__init_from=str(workdir), schedule__warmup_steps="0")
    config.objective.teacher_momentum = 1.0
    began = pretrain(config, str(tmp_path))
    given = arrays(state.model)
    assert not np.array_equal(arrays(began.model)["map/kernel"], given["map/kernel"])
    for name, value in arrays(began.extra["teacher"]).items():
        np.testing.assert_array_equal(value, given[name], err_msg=name)


def test_its_alarm_is_told_once_and_its_mistakes_with_the_others(dataset, tmp_path, capsys):
    pretrain(toy_config(dataset), str(tmp_path))
    assert capsys.readouterr().out.count("warning: at step 2 the toy does not reach far") == 1
    config = of_toy(small.config("nepa", dataset, data__batch_size="12"), teacher_momentum=1.5)
    with pytest.raises(UserError) as caught:
        pretrain(config, str(tmp_path / "other"))
    assert "objective.teacher_momentum = 1.5" in str(caught.value)
    assert "data.batch_size = 12" in str(caught.value)
