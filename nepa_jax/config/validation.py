"""Every mistake of a config at once."""

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.sections import section_problems, shown
from nepa_jax.config.keys import (
    CHOICES,
    OBJECTIVES,
    OWN_OBJECTIVES,
    bounds_of,
    in_another_unit,
    refuse,
)
from nepa_jax.config.overrides import known_keys, meant
from nepa_jax.config.recipes import base_config
from nepa_jax.config.resolution import loader_config
from nepa_jax.config.rules import Check, broken_rules, exists
from nepa_jax.config.saved import RENAMED
from nepa_jax.data.settings import problems as data_problems


def validate(config: ConfigDict, *more: Check) -> None:
    """Checks the whole config before anything is built, without jax.

    Args:
        config: a run's, overrides applied.
        more: other checks, to be told in the same round: of the objective, of the mesh. They are
            asked when every key is right by itself.

    Raises:
        UserError: one line for each problem, as ``path = value: problem; try …``.
    """
    found: dict[str, str] = {}
    for name in base_config():
        found |= _section_problems(config, name)
    problems = [
        f"{name}: there is no such section; keys of your own go into config.objective"
        for name in config
        if name not in base_config()
    ]
    problems += [*found.values(), *broken_rules(config, found)]
    if not any(key.startswith(("data.", "model.", "run.")) for key in found):
        problems += data_problems(loader_config(config))
    problems += _name_problems(config.objective.get("name"))
    if not found:
        problems += [problem for check in more for problem in check(config)]
    refuse(problems)


def model_problems(config: ConfigDict) -> list[str]:
    """What is wrong with the model of a config, which may come out of any file: a line each."""
    if not isinstance(config.get("model"), ConfigDict):
        return ["model: there is no such section"]
    found = _section_problems(config, "model")
    run = config.get("run")
    if isinstance(run, ConfigDict):  # says how the model computes
        found |= _choice_problems(run, "run")
    return [*found.values(), *broken_rules(config, found, "model.")]


def _section_problems(config: ConfigDict, name: str) -> dict[str, str]:
    """Keys of a section that are missing, unknown, of another type or out of range, a line each."""
    if name == "objective":  # its own file knows them
        return {}
    section, known = config[name], known_keys(config, name)
    found = {
        f"{name}.{key}": f"{name}.{key} = {shown(value)}: {_unknown(config, name, key)}"
        for key, value in section.items()
        if key not in known
    }
    rest = {key: value for key, value in section.items() if key in known}
    found |= section_problems(name, rest, known, bounds_of(name))
    return _choice_problems(section, name) | _old_values(section, name) | found


def _unknown(config: ConfigDict, name: str, key: str) -> str:
    other = in_another_unit(config[name], key)
    if other:
        return f"the same length as {name}.{other} = {config[name][other]}; leave one out"
    return f"there is no such key; {meant(config, f'{name}.{key}')}"


def _choice_problems(section: ConfigDict, name: str) -> dict[str, str]:
    return {
        f"{name}.{key}": f"{name}.{key} = {shown(section[key])}: not a choice; try {' or '.join(choices)}"
        for key, choices in CHOICES.get(name, {}).items()
        if key in section and section[key] not in choices
    }


def _old_values(section: ConfigDict, name: str) -> dict[str, str]:
    """Values that a key had in earlier versions, under a name that another key has today."""
    return {
        old: f"{old} = {value}: not a choice; did you mean {new} = {values[value]}?"
        for old, new, values in RENAMED
        if old.startswith(f"{name}.")
        and (value := str(section.get(old.partition(".")[2]))) in values
    }


def _name_problems(name: Any) -> list[str]:
    """An objective of one's own is looked for beside the recipe and in the current folder, too."""
    line, known = f"objective.name = {name!r}: ", " or ".join(OBJECTIVES)
    if not name:
        return [f"{line}does not say what to learn; try {known}"]
    if not isinstance(name, str) or not all(map(str.isidentifier, name.split("."))):
        return [f"{line}is no name of a module; try {known}"]
    if exists(name):
        return []
    here = Path.cwd()
    if any(here.joinpath(name.partition(".")[0] + end).exists() for end in (".py", "")):
        sys.path.append(str(here))
        importlib.invalidate_caches()
        if exists(name):
            return []
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(f"{OWN_OBJECTIVES}.{last}", OBJECTIVES, 1, cutoff=0.9)
    return [
        f"{line}there is no such module, neither installed nor in PYTHONPATH, beside the config or in "
        f"{here}; try {near[0] if near else known}"
    ]


def require_labels(config: ConfigDict) -> None:
    """Raises UserError if the config is none to fine-tune by: it learns without labels."""
    name = config.objective.get("name")
    if name in (f"{OWN_OBJECTIVES}.nepa", f"{OWN_OBJECTIVES}.mae"):
        raise UserError(
            f"objective.name = {name}: is for `nepa-jax pretrain`; fine-tuning takes a config that learns "
            "labels, such as --config=configs/finetune.py:nepa,B/14"
        )


def has_own_mesh(config: ConfigDict) -> bool:
    """Whether the mesh is another than the default, which fits any devices."""
    return config.mesh.to_dict() != base_config().mesh.to_dict()
