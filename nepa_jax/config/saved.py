"""Configs as JSON text, also those that earlier versions wrote."""

import json
from typing import Any

from ml_collections import ConfigDict

from nepa_jax.base.errors import in_short
from nepa_jax.base.text import parse_json


def to_json(config: ConfigDict) -> str:
    """The config as JSON text with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The inverse of :func:`to_json`; lists become tuples as in recipes.

    Raises:
        ValueError: the text is no JSON object, or not of a config.
    """
    try:
        return in_todays_words(ConfigDict(_tuples(parse_json(text.encode(), dict))))
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is no config ({in_short(error)})") from None


# What configs saved earlier call otherwise: a key with its value then, and both now.
RENAMED: dict[tuple[str, Any], tuple[str, Any]] = {
    ("objective.name", "nepa_jax.export.encoder"): (
        "objective.name",
        "nepa_jax.objectives.encoder",
    ),
}

# Keys that configs saved earlier lack, with what such a config stands for.
_LATER_KEYS: dict[str, dict[str, Any]] = {
    "model": dict(qkv_bias=True, qk_norm_bias=False),
    "nepa_jax.objectives.nepa": dict(causal=True),
    "nepa_jax.objectives.mae": dict(decoder_mlp_ratio=4.0),
}


def in_todays_words(config: ConfigDict) -> ConfigDict:
    """The config itself, which an earlier version may have written, as today's would write it."""
    for (key, value), (new_key, new_value) in RENAMED.items():
        section, name = _place(config, key)
        if section.get(name) == value:
            del section[name]
            section, name = _place(config, new_key)
            section[name] = new_value
    return with_later_keys(config)


def _place(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The section of a key, an empty one if there is none, and its name there."""
    section, _, name = key.partition(".")
    found = config.get(section)
    return (found if isinstance(found, ConfigDict) else ConfigDict()), name


def with_later_keys(config: ConfigDict) -> ConfigDict:
    """The config itself, with the keys that came after it was written."""
    model, _ = _place(config, "model")
    objective, _ = _place(config, "objective")
    for section, keys in ((model, "model"), (objective, objective.get("name", ""))):
        for name, value in _LATER_KEYS.get(keys, {}).items():
            if name not in section:
                section[name] = value
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
