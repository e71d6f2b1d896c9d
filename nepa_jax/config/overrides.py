"""Keys set from text, and what was meant by those that do not exist."""

import difflib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nepa_jax.base.sections import WRONG, parsed, shown, suggestion, wanted
from nepa_jax.config.keys import (
    OTHER_NAMES,
    bounds_of,
    flat_keys,
    in_another_unit,
    in_units_of,
    refuse,
)
from nepa_jax.config.recipes import base_config
from nepa_jax.config.saved import RENAMED


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets keys such as ``optim.lr`` from text.

    Raises:
        UserError: all unknown keys and wrong types, in one message.
    """
    problems = [
        f"{key} beside {other}: the same length twice; leave one out"
        for key in overrides
        if (other := in_another_unit(overrides, key)) and key < other
    ]
    for key, text in overrides.items():
        problem = _override(config, key, text)
        problems += [problem] if problem else []
    refuse(problems)


def _override(config: ConfigDict, key: str, text: str) -> str | None:
    name, _, rest = key.partition(".")
    section, known = config.get(name), known_keys(config, name)
    replaced = None if rest in known else in_another_unit(known, rest)
    if rest not in known and replaced is None:
        return f"{key} = {shown(text)}: there is no such key; {meant(config, key)}"
    default, bound = known[replaced or rest], bounds_of(name).get(rest)
    value = parsed(text, float(default) if replaced else default, bound)
    if value is WRONG:
        return f"{key} = {shown(text)}: wrong type; write {wanted(default, bound)}"
    *parents, last = rest.split(".")
    for parent in parents:
        section = section[parent]
    if replaced:
        del section[replaced]
    with config.ignore_type():
        put(section, last, value)
    return None


def put(section: ConfigDict, key: str, value: Any) -> None:
    """Sets a value as it is; ConfigDict may turn it into the type of the one that was there."""
    section[key] = value
    if type(section[key]) is not type(value):
        del section[key]
        section[key] = value


def known_keys(config: ConfigDict, name: str) -> dict[str, Any]:
    """The keys of a section with their defaults; an objective's are those its recipe has."""
    section = config.get(name)
    if not isinstance(section, ConfigDict) or name not in base_config():
        return {}
    return flat_keys(section) if name == "objective" else in_units_of(section, base_config()[name])


def meant(config: ConfigDict, key: str) -> str:
    """What a user may have had in mind with a key that does not exist."""
    name, _, rest = key.partition(".")
    known = known_keys(config, name)
    if known and not rest:
        return f"it is a section; its keys are {', '.join(known)}"
    everywhere = [f"{other}.{leaf}" for other in config for leaf in known_keys(config, other)]
    last = key.rpartition(".")[2]
    same = [other for other in everywhere if other.rpartition(".")[2] == last]
    near = difflib.get_close_matches(key, everywhere, n=1, cutoff=0.8)
    today = [each.new for each in RENAMED if each.old == key]
    for found in (*today, OTHER_NAMES.get(last), *same, *near):
        if found:
            return f"did you mean {found}?"
    return suggestion(name, rest, known) if known else f"the sections are {', '.join(config)}"
