"""Configs: overrides, mistakes, units, and every recipe."""

import ast
import json
import math
import re
import sys
from pathlib import Path

import jax
import pytest
import small
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax import config as configs
from nepa_jax.base.errors import UserError
from nepa_jax.config.keys import BOUNDS
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
    loss, _ = jax.eval_shape(objective.loss, model, None, batch, jax.random.key(0))
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
        ("data.decode", "fast", "data.decode = fast: .* did you mean data.resize?"),
        ("data.policy", "none", "data.policy = none: .* did you mean data.augment?"),
        ("data.batch_size", "many", "write a whole number"),
        ("data.batch_size", "1.5", "write a whole number"),
        ("data.flip", "1", "write true or false"),
        ("model.depth", "none", "write a whole number"),
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
        ({"data.augment": "random_crop"}, "did you mean data.crop = random?"),
        ({"data.crop_scale": "(0.5, 0.2)"}, "crop_scale"),
        ({"model.in_channels": "1"}, "one value per channel"),
        ({"schedule.total_steps": "0"}, "must be above 0"),
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


NUMBERS = {
    key: value
    for key, value in configs.flat_keys(configs.base_config()).items()
    if not isinstance(value, str | bool)
}


def refusal(key: str, value: object) -> str:
    """What is said of a config that has this value."""
    config = small.config("mae")
    key = key if key in configs.flat_keys(config) else key.replace("_epochs", "_steps")
    section, _, name = key.partition(".")
    with config.ignore_type():
        config[section][name] = value
    with pytest.raises(UserError) as error:
        configs.validate(config)
    return str(error.value)


@pytest.mark.trial
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e30, -1e30])
@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_range_and_says_so_in_one_line(key, number):
    default = NUMBERS[key]
    whole = type(default) is int and math.isfinite(number)
    value = int(number) if whole else number
    several = (value,) * max(len(default), 1) if isinstance(default, tuple) else value
    text = refusal(key, several)
    assert key.rpartition("_")[0] in text and ("must be" in text or "wrong type" in text)
    assert "\n" not in text and len(text) < 250


@pytest.mark.parametrize("key", [key for key in NUMBERS if not key.startswith("data.")])
def test_a_bound_stands_in_the_table_and_its_own_example_is_good(key):
    section, _, name = key.partition(".")
    bounds = BOUNDS[section]
    bound = bounds.get(name) or bounds[name.rpartition("_")[0]]
    example = ast.literal_eval(re.match(r"\(.*?\)|[^ ,;]+", bound.example).group())
    assert bound.holds(example)
    assert (None in bound.also) == (NUMBERS[key] is None)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("key", "text", "part"),
    [
        ("model.depth", "0", "at least 1"),
        ("model.depth", "100000", "at most 1000"),
        ("model.embed_dim", "65536", "billion parameters"),
        ("model.mlp_ratio", "1e-9", "MLP without units"),
        ("model.image_size", "(32, 32, 32)", "model.image_size = (32, 32, 32): wrong type"),
        ("model.image_size", "2048", "patches"),
        ("model.pixel_std", "('a', 'b', 'c')", "numbers in brackets"),
        ("model.pixel_std", "(0, 0, 0)", "at least 0.001"),
        ("log.profile_steps", "(9,)", "first, one after the last"),
        ("log.profile_steps", "('a', 'b')", "whole numbers in brackets"),
        ("log.watchdog_s", "1e-9", "0 for never"),
        ("run.seed", "9" * 30, "4,294,967,295"),
        ("schedule.final_lr", "0.5", "above the peak"),
        ("checkpoint.keep_last", "0", "at least 1"),
        ("checkpoint.keep_every_steps", "-1", "0 for none"),
        ("checkpoint.every_examples", "3", "checkpoint.every_steps=1"),
        ("schedule.total_steps", "0.2", "less than a step"),
        ("schedule.total_steps", "1e11", "more than 2,147,483,647 steps"),
        ("schedule.warmup_steps", "6", "schedule.warmup_steps=0"),
        ("objective.name", "", "does not say what to learn"),
        ("objective.name", ".mae", "no name of a module"),
        ("objective.name", "mea", "nepa_jax.objectives.mae"),
        ("objective.name", "nepa_jax.objectives.maee", "try nepa_jax.objectives.mae"),
    ],
)
def test_nonsense_is_refused_before_anything_is_built(key, text, part):
    config = small.config("mae")
    with pytest.raises(UserError) as error:
        configs.apply_overrides(config, {key: text})
        configs.validate(config)
    line = str(error.value)
    assert part in line and line.startswith("config: ") and "\n" not in line


@pytest.mark.trial
@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"schedule.total_epochs": "20"}, "schedule.warmup_epochs = 40"),  # of a recipe
        ({"schedule.total_steps": "100"}, "--config.schedule.warmup_steps=5"),
        ({"schedule.total_examples": "25600"}, "warmup_epochs"),
        ({"schedule.total_epochs": "0.001"}, "schedule.total_steps=1"),
        ({"log.every_epochs": "0.001"}, "log.every_steps=1"),
        ({"checkpoint.keep_every_epochs": "0.001"}, "checkpoint.keep_every_steps=1"),
    ],
)
def test_lengths_that_do_not_fit_the_set_are_told_once_its_size_is_known(change, part):
    config = configs.load_config("configs/mae.py:Ti/16", {"data.batch_size": "256", **change})
    with pytest.raises(UserError) as error:
        configs.resolve(config, num_examples=2560, platform="cpu")
    assert part in str(error.value) and "\n" not in str(error.value)


def test_the_model_of_any_file_is_checked_by_the_same_rules():
    config = small.config("nepa")
    assert configs.model_problems(config) == []
    with config.ignore_type():
        config.model.mlp, config.model.norm_eps, config.run.dtype = "evil", "1e400", "int3"
    del config.model["depth"]
    problems = "\n".join(configs.model_problems(config))
    for key in (
        "model.mlp = evil",
        "model.norm_eps = 1e400",
        "model.depth is missing",
        "run.dtype",
    ):
        assert key in problems
    assert configs.model_problems(ConfigDict({"model": 5})) == ["model: there is no such section"]


def test_a_resolved_config_survives_json_and_resolves_to_itself():
    resolved = small.resolved("mae")
    again = configs.from_json(configs.to_json(resolved))
    assert configs.flat_keys(again) == configs.flat_keys(resolved)
    assert configs.flat_keys(configs.resolve(again, 40, "cpu")) == configs.flat_keys(resolved)


# Configs of one's own


def load_error(spec: object) -> str:
    with pytest.raises(UserError) as error:
        configs.load_config(str(spec))
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """Folders of configs are put on Python's path; not for the next test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


OWN = """from nepa_jax.config import base_config, load_config
def get_config(arg=""):
    c = load_config("configs/demo.py:nepa")
    {change}
    return c
"""


@pytest.mark.trial
@pytest.mark.parametrize(
    ("spec", "part"),
    [
        (
            "configs/none.py",
            "there are configs/{cifar.py, demo.py, finetune.py, mae.py, nepa.py, segment.py}",
        ),
        ("configs/nepa.py:XXL/16", "size 'XXL'"),
        ("configs/nepa.py:B/x", "patch side 'x'"),
        ("configs/nepa.py:papr", "'papr'"),
        ("configs/base.py", "what recipes start from"),
        ("", "does not exist"),
        ("gs://bucket/config.json", "is a URL"),
        ("README.md", "neither a recipe (.py) nor"),
        ("tests", "a folder without config.json"),
    ],
)
def test_a_recipe_that_does_not_exist_is_one_clear_line(spec, part, monkeypatch):
    monkeypatch.chdir(configs.CONFIGS.parent)
    assert part in load_error(spec)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("def get_config(arg='')\n    return 1\n", "own.py, line 1: SyntaxError"),
        ("x = 1\n", "no function get_config"),
        ("get_config = 3\n", "no function get_config"),
        ("def get_config(arg):\n    pass\n", "gives a NoneType, not a ConfigDict"),
        ("def get_config(arg):\n    return {'model': {}}\n", "gives a dict, not a ConfigDict"),
        (
            "import ml_collections as m\ndef get_config():\n    return m.ConfigDict()\n",
            "lacks checkpoint",
        ),
        ("def get_config(arg):\n    return 1 / 0\n", "own.py, line 2: ZeroDivisionError"),
        ("import no_such_helper\n", "own.py, line 1: ModuleNotFoundError"),
        ("raise SystemExit(3)\n", "own.py, line 1: SystemExit"),
        (OWN.format(change="c.optim.lr = 'a'"), "own.py, line 4: TypeError"),
        (OWN.format(change="c.optim.lr.x = 1"), "own.py, line 4: AttributeError"),
    ],
)
def test_what_is_wrong_with_a_file_of_ones_own_is_one_line_with_its_place(code, part, tmp_path):
    (tmp_path / "own.py").write_text(code)
    assert part in load_error(tmp_path / "own.py")


@pytest.mark.trial
@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("c.optim.weigth_decay = 0.3", "did you mean optim.weight_decay?"),
        ("c.data.batchsize = 128", "did you mean data.batch_size?"),
        ("c.data.decode = 'fast'", "did you mean data.resize?"),
        ("c.data.augment = 'center_crop'", "did you mean data.crop = center?"),
        ("c.optm = c.optim", "optm: there is no such section"),
        (
            "c.schedule.total_epochs = 3.0",
            "schedule.total_steps = 700.0: the same length as schedule.total_epochs = 3.0",
        ),
        ("del c.optim.b1", "optim.b1 is missing"),
        ("with c.ignore_type(): c.data.flip = 'no'", "write true or false"),
        ("with c.ignore_type(): c.data.batch_size = [4]", "write a whole number"),
        ("with c.ignore_type(): c.model.mlp = None", "model.mlp = None"),
        ("with c.ignore_type(): c.optim.eps = float('nan')", "optim.eps = nan"),
    ],
)
def test_a_typo_in_ones_own_recipe_is_found_as_an_overrides(change, part, tmp_path):
    (tmp_path / "own.py").write_text(OWN.format(change=change))
    config = configs.load_config(str(tmp_path / "own.py"), {"data.path": "somewhere"})
    with pytest.raises(UserError) as error:
        configs.validate(config)
    assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["c.lock()", "c = m.FrozenConfigDict(c)"])
def test_a_config_that_is_locked_takes_overrides(change, tmp_path):
    (tmp_path / "own.py").write_text("import ml_collections as m\n" + OWN.format(change=change))
    config = configs.load_config(str(tmp_path / "own.py"), {"schedule.total_epochs": "3"})
    assert config.schedule.total_epochs == 3.0


def test_a_recipe_may_import_what_lies_beside_it_and_take_no_argument(tmp_path):
    (tmp_path / "helper_of_mine.py").write_text("DEPTH = 5\n")
    code = "import helper_of_mine\n" + OWN.format(change="c.model.depth = helper_of_mine.DEPTH")
    (tmp_path / "own.py").write_text(code.replace('arg=""', ""))
    assert configs.load_config(str(tmp_path / "own.py")).model.depth == 5
    assert "takes no argument" in load_error(f"{tmp_path / 'own.py'}:B/16")


def test_values_come_out_as_the_types_they_stand_for(tmp_path):
    change = (
        "with c.ignore_type(): c.data.batch_size = 8.0; c.optim.lr = 1; "
        "c.model.image_size = [32, 16]; c.optim.b1 = numpy.float32(0.5)"
    )
    (tmp_path / "own.py").write_text("import numpy\n" + OWN.format(change=change))
    config = configs.load_config(str(tmp_path / "own.py"))
    values = (config.data.batch_size, config.optim.lr, config.model.image_size, config.optim.b1)
    assert values == (8, 1.0, (32, 16), 0.5)
    assert [type(value) for value in values] == [int, float, tuple, float]


@pytest.mark.trial
def test_another_file_of_a_recipes_name_is_taken_and_said_so(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mae.py").write_text(OWN.format(change="c.model.depth = 9"))
    monkeypatch.chdir(tmp_path)
    assert configs.load_config("configs/mae.py").model.depth == 9
    assert str(tmp_path / "configs" / "mae.py") in capsys.readouterr().err
    configs.load_config("configs/nepa.py")
    assert capsys.readouterr().err == ""


# Saved configs


def save(folder: Path, config: ConfigDict) -> str:
    (folder / "config.json").write_text(configs.to_json(config))
    return str(folder)


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_a_saved_config_runs_again_from_its_file_or_its_workdir(method, tmp_path):
    resolved = configs.resolve(small.config(method), 40, "cpu")
    workdir = save(tmp_path, resolved)
    for spec in (workdir, f"{workdir}/config.json"):
        again = configs.load_config(spec)
        configs.validate(again)
        assert again.optim.base_lr is None
        again.optim.base_lr = resolved.optim.base_lr
        assert configs.flat_keys(configs.resolve(again, 40, "cpu")) == configs.flat_keys(resolved)
    more = configs.load_config(workdir, {"schedule.total_epochs": "3"})
    assert configs.resolve(more, 40, "cpu").schedule.total_steps == 15


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (("random_crop", "rand_augment", "fast"), ("random", "rand_augment", "fast")),
        (("center_crop", "none", "exact"), ("center", "none", "exact")),
        (("none", "three_augment", "exact"), ("none", "three_augment", "exact")),
    ],
)
def test_a_config_of_earlier_names_is_read_in_todays(then, now):
    """`data.augment` was the crop then, and is the augmentation now."""
    config = small.resolved("nepa")
    written = json.loads(configs.to_json(config))
    names = ("crop", "augment", "resize")
    for name in names:
        del written["data"][name]
    written["data"] |= dict(zip(("augment", "policy", "decode"), then, strict=True))
    read = configs.from_json(json.dumps(written))
    assert tuple(read.data[name] for name in names) == now
    assert read.data.keys() == config.data.keys()
    assert configs.flat_keys(configs.from_json(configs.to_json(read))) == configs.flat_keys(read)


@pytest.mark.parametrize(("then", "now"), [(True, "tensorboard"), (False, "")])
def test_an_earlier_config_that_asked_for_tensorboard_asks_for_that_logger(then, now):
    config = small.resolved("nepa")
    written = json.loads(configs.to_json(config))
    del written["log"]["loggers"], written["log"]["pictures_every_steps"]
    read = configs.from_json(json.dumps(written | {"log": written["log"] | {"tensorboard": then}}))
    assert read.log.to_dict() == config.log.to_dict() | {"loggers": now}


def test_an_earlier_config_whose_loader_erased_is_the_objectives_now():
    written = json.loads(configs.to_json(small.resolved("nepa")))
    written["data"]["erase_prob"] = 0.0
    assert "erase_prob" not in configs.from_json(json.dumps(written)).data
    written["data"]["erase_prob"] = 0.25  # no other objective can
    assert configs.from_json(json.dumps(written)).data.erase_prob == 0.25
    written["objective"] = dict(name="nepa_jax.objectives.supervised", num_classes=4, pool="mean")
    read = configs.from_json(json.dumps(written))
    assert "erase_prob" not in read.data and read.objective.erase_prob == 0.25
    assert read.objective.mixup == 0.0  # of keys that came later


def test_later_keys_of_supervised_are_off_as_in_its_own_table():
    from nepa_jax.objectives import mix

    read = configs.from_json('{"objective": {"name": "nepa_jax.objectives.supervised"}}')
    assert {name: read.objective[name] for name in mix.DEFAULTS} == mix.DEFAULTS


@pytest.mark.trial
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not JSON text"),
        ("[]", "holds a JSON list"),
        ("{}", "lacks checkpoint"),
        ('{"model": 5}', "lacks checkpoint"),
        ("[" * 100_000, "nested too deep"),
        ('{"a.b": 1}', "config.json"),
        ('{"model": null, "objective": {"name": 5}}', "lacks checkpoint"),
    ],
)
def test_a_file_that_is_no_saved_config_is_one_line(text, part, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert part in load_error(tmp_path / "config.json")


@pytest.mark.trial
def test_a_saved_config_may_not_choose_code_to_run(tmp_path):
    config = configs.resolve(small.config("nepa"), 40, "cpu")
    config.objective.name = "antigravity"
    workdir = save(tmp_path, config)
    assert "--config.objective.name=antigravity" in load_error(workdir)
    assert configs.load_config(workdir, {"objective.name": "antigravity"}) is not None


@pytest.mark.trial
def test_keys_that_came_after_a_config_was_saved_are_added_and_named(tmp_path, capsys):
    config = configs.resolve(small.config("nepa"), 40, "cpu")
    del config.log["watchdog_s"]
    configs.validate(configs.load_config(save(tmp_path, config)))
    assert "log.watchdog_s=600.0" in capsys.readouterr().err


@pytest.mark.trial
def test_an_objective_is_found_in_the_current_folder_and_beside_the_config(tmp_path, monkeypatch):
    for folder, name in (("here", "objective_of_here"), ("there", "objective_of_there")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text("from nepa_jax.objectives.nepa import *\n")
    (tmp_path / "there" / "own.py").write_text(OWN.format(change="c.data.path = 'd'"))
    monkeypatch.chdir(tmp_path / "here")
    for name in ("objective_of_here", "objective_of_there"):
        overrides = {"objective.name": name}
        configs.validate(configs.load_config(str(tmp_path / "there" / "own.py"), overrides))
    with pytest.raises(UserError, match=r"PYTHONPATH.*here"):
        configs.validate(
            configs.load_config("configs/demo.py", {"data.path": "d", "objective.name": "nowhere"})
        )


@pytest.mark.trial
@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("import no_such_library\n", "no_such_library"),
        ("x = (\n", "SyntaxError"),
        ("1 / 0\n", "line 1"),
    ],
)
def test_what_fails_in_a_package_of_ones_own_is_told_with_its_place(
    code, part, tmp_path, monkeypatch
):
    package = tmp_path / f"package_{part.replace(' ', '_')}"
    package.mkdir()
    (package / "__init__.py").write_text(code)
    (package / "objective.py").write_text("from nepa_jax.objectives.nepa import *\n")
    monkeypatch.chdir(tmp_path)
    name = f"{package.name}.objective"
    configs.validate(small.config("nepa", objective__name=name))
    with pytest.raises(UserError, match=part) as error:
        load_objective(name)
    assert "__init__.py" in str(error.value)
