"""Configs: overrides, mistakes, units, and every recipe."""

import jax
import pytest
import small
from flax import nnx

from nepa_jax import config as configs
from nepa_jax.errors import UserError
from nepa_jax.objectives.base import load_objective

RECIPES = [
    f"configs/{method}.py:{size}/{patch}{preset}"
    for method in ("nepa", "mae")
    for size, patch in (("Ti", 16), ("S", 16), ("B", 14), ("L", 14), ("H", 14), ("g", 14))
    for preset in ("", ",paper")
]


@pytest.mark.parametrize("spec", RECIPES)
def test_every_recipe_validates_and_traces(spec):
    config = configs.load_config(spec)
    config.data.path = "somewhere"
    configs.validate(config)
    config = configs.resolve(config, num_examples=1_281_167, platform="tpu")
    objective = load_objective(config.objective.name)
    model = jax.eval_shape(lambda: objective.init_model(config, nnx.Rngs(0)))
    size = config.model.image_size
    batch = {
        "image": jax.ShapeDtypeStruct((2, *size, 3), "uint8"),
        "row": jax.ShapeDtypeStruct((2,), "int32"),
    }
    loss, _ = jax.eval_shape(objective.loss, model, batch, jax.random.key(0))
    assert loss.shape == () and loss.dtype == "float32"


def test_paper_numbers_come_out():
    nepa = configs.resolve(configs.load_config("configs/nepa.py"), 1_281_167, "tpu")
    assert nepa.optim.lr == pytest.approx(4.8e-3)  # NEPA, Table 4: 3e-4 · 4096 / 256
    assert nepa.schedule.total_steps == 1600 * 312
    assert nepa.schedule.warmup_steps == 40 * 312
    mae = configs.resolve(configs.load_config("configs/mae.py"), 1_281_167, "tpu")
    assert mae.optim.lr == pytest.approx(2.4e-3)  # MAE, Table 8
    assert mae.run.dtype == "bfloat16"


def test_an_override_in_another_unit_takes_the_place_of_the_recipes():
    config = small.config("nepa")
    configs.apply_overrides(config, {"schedule.total_examples": "800"})
    assert "total_epochs" not in config.schedule and "total_steps" not in config.schedule
    assert configs.resolve(config, 40, "cpu").schedule.total_steps == 100
    configs.apply_overrides(config, {"schedule.total_epochs": "2.5"})
    assert configs.resolve(config, 40, "cpu").schedule.total_steps == round(2.5 * (40 // 8))


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("optim.clip_norm", "none", None),
        ("optim.clip_norm", "2", 2.0),
        ("data.batch_size", "1e3", 1000),
        ("model.image_size", "(32, 16)", (32, 16)),
        ("data.flip", "false", False),
        ("data.path", "gs://bucket/set", "gs://bucket/set"),
    ],
)
def test_text_becomes_a_value_of_the_keys_type(key, text, value):
    config = small.config("nepa")
    configs.apply_overrides(config, {key: text})
    assert configs.flat_keys(config)[key] == value


@pytest.mark.parametrize(
    ("key", "text", "part"),
    [
        ("optim.learning_rate", "1", "did you mean"),
        ("optim.beta1", "1", "did you mean optim.b1"),
        ("data.batch_sise", "8", "did you mean data.batch_size"),
        ("data.batch_size", "many", "write a value of type int"),
        ("data.batch_size", "1.5", "write a value of type int"),
        ("data.flip", "1", "write a value of type bool"),
        ("model.depth", "none", "write a value of type int"),
    ],
)
def test_an_unknown_key_or_wrong_type_names_the_remedy(key, text, part):
    with pytest.raises(UserError, match=part):
        configs.apply_overrides(small.config("nepa"), {key: text})


def test_all_problems_are_listed_at_once():
    config = small.config(
        "nepa", model__patch_size="5", model__num_heads="3", optim__accum_steps="3", data__path=""
    )
    with pytest.raises(UserError) as error:
        configs.validate(config)
    text = str(error.value)
    for key in (
        "model.patch_size = 5",
        "model.num_heads = 3",
        "optim.accum_steps = 3",
        "data.path",
    ):
        assert key in text
    assert text.count("; try") == 4


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"optim.lr": "0.1"}, "exactly one"),
        ({"model.mlp": "relu"}, "gelu or swiglu"),
        ({"data.crop_scale": "(0.5, 0.2)"}, "crop_scale"),
        ({"model.in_channels": "1"}, "one value per channel"),
        ({"schedule.total_steps": "0"}, "positive"),
        ({"objective.mask_ratio": "1.5"}, "mask_ratio"),
        ({"objective.decoder_num_heads": "3"}, "decoder_num_heads"),
    ],
)
def test_values_that_cannot_work_are_refused(change, part):
    config = small.config("mae")
    configs.apply_overrides(config, change)
    objective = load_objective(config.objective.name)
    with pytest.raises(UserError, match=part):
        configs.validate(config, objective.problems)


def test_a_resolved_config_survives_json_and_resolves_to_itself():
    resolved = small.resolved("mae")
    again = configs.from_json(configs.to_json(resolved))
    assert configs.flat_keys(again) == configs.flat_keys(resolved)
    assert configs.flat_keys(configs.resolve(again, 40, "cpu")) == configs.flat_keys(resolved)


@pytest.mark.parametrize(
    "spec",
    ["configs/none.py", "configs/nepa.py:XXL/16", "configs/nepa.py:B/x", "configs/nepa.py:papr"],
)
def test_a_recipe_that_does_not_exist_is_one_clear_line(spec):
    with pytest.raises(UserError):
        configs.load_config(spec)
