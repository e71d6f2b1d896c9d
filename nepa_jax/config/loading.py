"""A run's config from a recipe, a saved file or a workdir."""

import json
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.base.sections import WRONG, fitted
from nepa_jax.base.text import read_json
from nepa_jax.config.keys import OWN_OBJECTIVES, bounds_of, in_units_of
from nepa_jax.config.overrides import apply_overrides, put
from nepa_jax.config.recipes import CONFIGS, base_config, listed_recipes, recipe
from nepa_jax.config.saved import from_json


def load_config(spec: str, overrides: Mapping[str, str] = types.MappingProxyType({})) -> ConfigDict:
    """The config of ``RECIPE.py[:arg]``, of a saved ``config.json``, or of a workdir that holds one.

    A relative path that does not exist is looked for beside the package, so that the recipes that
    come with it are found from any folder. A recipe may import what lies beside it.

    Args:
        spec: where it is.
        overrides: as for :func:`apply_overrides`.

    Raises:
        UserError: there is no such file, it fails, or what it gives is no config; or as
            :func:`apply_overrides`.
    """
    path, arg = _find_config(spec)
    if path == CONFIGS / "base.py":
        raise UserError(f"config {path}: is what recipes start from; there are {listed_recipes()}")
    config = (
        _saved_config(path, arg)
        if path.suffix == ".json"
        else with_types(recipe(path, arg), str(path))
    )
    apply_overrides(config, overrides)
    if path.suffix == ".json" and "objective.name" not in overrides:
        _require_own_objective(config, path)
    return config


def _find_config(spec: str) -> tuple[Path, str]:
    """The file and the argument behind its name."""
    if "://" in spec:
        raise UserError(f"config {spec!r}: is a URL, and this must be a file; copy it here")
    path, arg = (spec, "") if Path(spec).exists() else spec.partition(":")[::2]
    ours = CONFIGS.parent / path
    file = next((file for file in (Path(path), ours) if path and file.exists()), None)
    if file is None:
        raise UserError(f"config file {path!r} does not exist; there are {listed_recipes()}")
    file = file.resolve()
    if file.is_dir():
        file = file / "config.json"
        if not file.is_file():
            raise UserError(f"config {path!r}: is a folder without config.json; give a file")
    if file.suffix not in (".py", ".json"):
        raise UserError(
            f"config {path!r}: is neither a recipe (.py) nor a run's config.json; there are {listed_recipes()}"
        )
    if ours.is_file() and file != ours.resolve():
        print(f"config: {file}, not the recipe of that name of nepa_jax", file=sys.stderr)
    return file, arg


def _saved_config(path: Path, arg: str) -> ConfigDict:
    """A resolved config, to run again. Its lr is decided: a base_lr beside it only says from what."""
    if arg:
        raise UserError(f"config {path}: a saved config takes no argument; leave ':{arg}' out")
    try:
        config = from_json(json.dumps(read_json(path, dict)))
    except (OSError, ValueError) as error:
        raise UserError(f"config {path}: {getattr(error, 'strerror', error)}") from None
    _fill_in(config, path)
    config = with_types(config, str(path))
    if config.optim.get("lr") is not None:
        config.optim.base_lr = None
    return config


def _require_own_objective(config: ConfigDict, path: Path) -> None:
    """Raises UserError if a saved config, which may be a stranger's, would choose the code to run."""
    name = str(config.objective.get("name"))
    if not name.startswith(f"{OWN_OBJECTIVES}."):
        raise UserError(
            f"config {path}: names an objective outside of nepa_jax; if its code may be run, say so "
            f"with --config.objective.name={name}"
        )


def _fill_in(config: ConfigDict, path: Path) -> None:
    """Gives a config that an earlier version saved the keys that came later, and says so."""
    later = []
    for name, defaults in base_config().items():
        section = config.get(name)
        if name == "objective" or not isinstance(section, ConfigDict):
            continue
        for key, default in in_units_of(section, defaults).items():
            if key not in section:
                section[key] = default
                later.append(f"{name}.{key}={default}")
    if later:
        warn(f"config {path}: is of another version; added {', '.join(later)}")


def with_types(config: Any, source: str) -> ConfigDict:
    """The config with every value as the type it stands for; what is none is left to :func:`validate`.

    Raises:
        UserError: it is no config, or lacks a section.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config {source}: gives a {type(config).__name__}, not a ConfigDict; begin with "
            "nepa_jax.config.base_config()"
        )
    if config.is_locked or isinstance(config, FrozenConfigDict):
        config = ConfigDict(config.to_dict())
    defaults = base_config()
    absent = [name for name in defaults if not isinstance(config.get(name), ConfigDict)]
    if absent:
        raise UserError(
            f"config {source}: lacks {', '.join(absent)}; a recipe begins with nepa_jax.config.base_config()"
        )
    with config.ignore_type():
        for name in set(defaults) - {"objective"}:
            for key, default in in_units_of(config[name], defaults[name]).items():
                value = fitted(config[name].get(key), default, bounds_of(name).get(key))
                if value is not WRONG:
                    put(config[name], key, value)
    return config
