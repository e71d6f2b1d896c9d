"""A setting of the loader is one line, with a range or choices, and told by its place in a config."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

import nepa_jax
from nepa_jax.base import memory
from nepa_jax.base.errors import UserError
from nepa_jax.base.sections import Bound
from nepa_jax.config import CONFIGS, base_config, loader_config
from nepa_jax.data import settings
from nepa_jax.data.augment import AUGMENTS
from nepa_jax.data.decode import MODES
from nepa_jax.data.loader import Loader, LoaderConfig
from nepa_jax.data.resize import INTERPOLATIONS, RESIZES
from nepa_jax.data.settings import DATA, PLACES, memory_problems, problems
from nepa_jax.data.transforms import CROPS

CONFIG = LoaderConfig("DIR", batch_size=256)
ALLOWED = {each.name: each.metadata["allowed"] for each in fields(LoaderConfig)}


def test_the_choices_are_those_that_are_implemented():
    tables = dict(
        channels=MODES, crop=CROPS, interpolation=INTERPOLATIONS, resize=RESIZES, augment=AUGMENTS
    )
    choices = {name: set(each) for name, each in ALLOWED.items() if isinstance(each, tuple)}
    assert choices == {name: set(table) for name, table in tables.items()}


def test_every_number_has_a_range_in_which_its_default_lies():
    numbers = {
        each.name
        for each in fields(LoaderConfig)
        if type(each.default) in (int, float, tuple) and not isinstance(ALLOWED[each.name], tuple)
    }
    bounds = {name for name, each in ALLOWED.items() if isinstance(each, Bound)}
    assert numbers - {"seed"} == bounds  # any seed is as good
    assert problems(CONFIG) == []


@pytest.mark.parametrize("name", DATA)
def test_what_a_config_says_is_what_the_loader_gets(name):
    config = base_config()
    assert config.data[name] == DATA[name]
    kinds = {str: "another", bool: not DATA[name], int: 7, float: 0.5, tuple: (0.3, 0.4)}
    config.data[name] = kinds[type(DATA[name])]
    assert getattr(loader_config(config), name) == config.data[name] != DATA[name]
    names = {*base_config().data, *PLACES}
    assert names == {each.name for each in fields(LoaderConfig)}


ONE_MORE = """
from nepa_jax.config import base_config, apply_overrides, loader_config, validate
config = base_config()
apply_overrides(config, {"data.sharpness": "0.25"})
print(loader_config(config).sharpness)
apply_overrides(config, {"data.sharpness": "2"})
try:
    validate(config)
except Exception as error:
    print(error)
"""


def test_a_new_key_is_one_line(tmp_path):
    """In a copy of the package: default, override, range and the loader's config follow from it."""
    shutil.copytree(Path(nepa_jax.__file__).parent, tmp_path / "nepa_jax")
    shutil.copytree(CONFIGS, tmp_path / "configs")
    file = tmp_path / "nepa_jax" / "data" / "settings.py"
    line = '    sharpness: float = key(0.0, Bound("[0, 1]", "0.5"))\n'
    flip = next(each for each in file.read_text().splitlines(True) if each.startswith("    flip:"))
    file.write_text(file.read_text().replace(flip, flip + line))
    found = subprocess.run(
        [sys.executable, "-c", ONE_MORE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    first, *rest = found.stdout.splitlines()
    assert first == "0.25"
    assert "  data.sharpness = 2.0: must be at least 0 and at most 1; try 0.5" in rest


def test_checking_a_config_loads_nothing_heavy():
    code = "import sys, nepa_jax.config; print({'cv2', 'PIL', 'jax', 'numpy'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.trial
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_workers", 500, "data.num_workers = 500: must be at least 0 and at most 256; try 0"),
        ("num_workers", -1, "data.num_workers = -1"),
        ("num_workers", 1.5, "data.num_workers = 1.5: wrong type"),
        ("num_threads", 100_000, "data.num_threads = 100000: .* at most 1024; try 0 for one per"),
        ("num_threads", -1, "data.num_threads = -1"),
        ("read_ahead", 1_000_000_000, "data.read_ahead = 1000000000: .* at most 1024; try 2"),
        ("read_ahead", 0, "data.read_ahead = 0"),
        ("batch_size", 0, "data.batch_size = 0"),
        ("batch_size", 1 << 40, "data.batch_size = 1099511627776"),
        ("batch_size", "256", "data.batch_size = 256: wrong type; write a whole number"),
        ("crop_pct", 0.0, "data.crop_pct = 0.0"),
        ("crop_pct", 1.5, "data.crop_pct = 1.5"),
        ("crop_pct", float("nan"), "data.crop_pct = nan"),
        ("crop_scale", (0.5, 0.2), r"data.crop_scale = \(0.5, 0.2\): the low end comes first"),
        ("crop_scale", (0.0, 0.2), "data.crop_scale"),
        ("crop_scale", (0.2, 1.5), "data.crop_scale"),
        ("crop_scale", (0.2,), "data.crop_scale = .*two numbers"),
        ("crop_scale", ("a", "b"), "data.crop_scale = .*wrong type"),
        ("max_bad_rate", -0.1, "data.max_bad_rate = -0.1"),
        ("pixel_mean", 0.5, "model.pixel_mean = 0.5: wrong type; write numbers in brackets"),
        ("pixel_mean", (0.5, 0.5, 99.0), "model.pixel_mean = .*at most 10"),
        ("flip", 1, "data.flip = 1: wrong type; write true or false"),
        ("seed", 0.5, "run.seed = 0.5: wrong type"),
        ("image_size", (224,), r"model.image_size = \(224,\): must be two numbers"),
        ("image_size", (32, 32, 32), "model.image_size = .*two numbers"),
        ("image_size", (0, 32), "model.image_size"),
        ("image_size", (32, 1 << 20), "model.image_size"),
        ("channels", 4, "model.in_channels = 4: not a choice; try 1 or 3"),
        ("augment", "mixup", "data.augment = mixup: not a choice; try none or rand_augment"),
        ("resize", None, "data.resize = None: not a choice"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_place(key, value, words):
    (problem,) = problems(replace(CONFIG, **{key: value}))
    assert re.match(words, problem), problem


def test_all_mistakes_are_told_at_once():
    found = problems(replace(CONFIG, batch_size=10, read_ahead=0, augment="x"), num_hosts=3)
    assert len(found) == 3 and any("multiple of the 3 hosts; try 9" in line for line in found)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"read_ahead": 1000}, "read_ahead = 1000"),
        ({"num_workers": 200}, "num_workers = 200"),
        ({"batch_size": 1 << 20}, "batch_size = 1048576"),
    ],
)
def test_what_the_memory_cannot_hold_is_told_before_it_is_tried(monkeypatch, change, key):
    monkeypatch.setattr(settings, "memory_bytes", lambda: 8 << 30)
    (problem,) = memory_problems(replace(CONFIG, **change), num_hosts=1)
    assert problem.startswith(f"data.{key}: ") and "this machine has 8,192 MiB" in problem
    assert memory_problems(CONFIG, num_hosts=1) == []


def test_a_host_keeps_only_its_rows(monkeypatch):
    monkeypatch.setattr(settings, "memory_bytes", lambda: 8 << 30)
    large = replace(CONFIG, batch_size=1 << 20)
    assert memory_problems(large, num_hosts=1) and not memory_problems(large, num_hosts=1024)


@pytest.mark.trial
def test_a_loader_asks_for_the_memory_before_it_reads(monkeypatch, prepared):
    monkeypatch.setattr(settings, "memory_bytes", lambda: 1 << 20)
    with pytest.raises(UserError, match="this machine has 1 MiB"):
        Loader(LoaderConfig(prepared, batch_size=10))


def test_the_memory_is_the_containers_if_it_has_a_limit(monkeypatch, tmp_path):
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_LIMITS", (limit, tmp_path / "none"))
    for text, expected in (("max\n", physical), ("1048576\n", 1 << 20), ("", physical)):
        limit.write_text(text)
        assert memory.memory_bytes() == expected
