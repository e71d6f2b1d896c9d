"""Configs as JSON text, also those that earlier versions wrote."""

import json
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

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


class Renamed(NamedTuple):
    """A key of earlier versions, its name today, and values that are called otherwise today."""

    old: str
    new: str
    values: Mapping[Any, Any] = types.MappingProxyType({})


# In this order: the old name of one is today's name of the next.
RENAMED = (
    Renamed("data.augment", "data.crop", {"random_crop": "random", "center_crop": "center"}),
    Renamed("data.policy", "data.augment"),
    Renamed("data.decode", "data.resize"),
    Renamed("log.tensorboard", "log.loggers", {False: "", True: "tensorboard"}),
    Renamed(
        "objective.name",
        "objective.name",
        {"nepa_jax.export.encoder": "nepa_jax.objectives.encoder"},
    ),
)

# The section of a run's config that came last.
_NO_EVALS = dict(
    online=False, layers=(), lr=1e-3, every_steps=1000, bank_images=10_000, test_images=2000,
    test_split="validation", validate=False, validate_images=0,
)  # fmt: skip

# Keys that configs saved earlier lack, with what such a config stands for.
_LATER_KEYS: dict[str, dict[str, Any]] = {
    "model": dict(qkv_bias=True, qk_norm_bias=False),
    "run": dict(residual_dtype="float32", init_ema=False),
    "checkpoint": dict(keep_best=False),
    "evals": dict(validate=False, validate_images=0),
    "data": dict(masks=False, max_class_share=1.0),
    "log": dict(loggers="", pictures_every_steps=0),
    "optim": dict(
        shape="cosine",
        layer_decay=None,
        layer_decay_end=None,
        layer_decay_ramp="cosine",
        layer_decay_offset=0,
        layer_warmup=False,
        head_lr=None,
        freeze_patch_embed=False,
        decay_tokens=True,
    ),
    "nepa_jax.objectives.nepa": dict(causal=True, shift=1, stop_gradient=True),
    "nepa_jax.objectives.mae": dict(decoder_mlp_ratio=4.0),
    "nepa_jax.objectives.supervised": dict(
        mixup=0.0,
        cutmix=0.0,
        mixup_prob=1.0,
        mixup_switch_prob=0.5,
        mixup_group=32,
        cutmix_box="timm-1.0.31",
        label_smoothing=0.0,
        erase_prob=0.0,
        head_init=0.0,
    ),
}


def in_todays_words(config: ConfigDict) -> ConfigDict:
    """The config itself, which an earlier version may have written, as today's would write it."""
    for old, new, values in RENAMED:
        section, name = _place(config, old)
        new_name = _place(config, new)[1]
        if name in section and (old == new or new_name not in section):
            value = section[name]
            del section[name]
            section[new_name] = values.get(value, value)
    _move_erasing(config)
    return with_later_keys(config)


def _move_erasing(config: ConfigDict) -> None:
    """The loader erased, whatever the objective; what another one still asks for stays an error."""
    data, objective = (_place(config, name)[0] for name in ("data", "objective"))
    supervised = objective.get("name") == "nepa_jax.objectives.supervised"
    if "erase_prob" in data and (supervised or data.erase_prob == 0.0):
        value = data.erase_prob
        del data["erase_prob"]
        if supervised:
            objective.erase_prob = value


def _place(config: ConfigDict, key: str) -> tuple[ConfigDict, str]:
    """The section of a key, an empty one if there is none, and its name there."""
    section, _, name = key.partition(".")
    found = config.get(section)
    return (found if isinstance(found, ConfigDict) else ConfigDict()), name


def with_later_keys(config: ConfigDict) -> ConfigDict:
    """The config itself, with the keys that came after it was written."""
    sections = {name: _place(config, name)[0] for name in (*_LATER_KEYS,) if "." not in name}
    objective = _place(config, "objective")[0]
    for keys, section in {**sections, objective.get("name", ""): objective}.items():
        for name, value in _LATER_KEYS.get(keys, {}).items():
            if name not in section:
                section[name] = value
    if "schedule" in config and "evals" not in config:  # a run's, not a model's alone
        config.evals = ConfigDict(_NO_EVALS)
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
