"""Configs: load a recipe, apply overrides, list every mistake at once, resolve units, save."""

import ast
import difflib
import importlib.util
import json
import os
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nepa_jax.data.settings import LoaderConfig
from nepa_jax.data.settings import problems as data_problems
from nepa_jax.errors import UserError
from nepa_jax.models.sizes import parse_variant

# The recipes: beside the package in a checkout, inside it once installed.
_PACKAGE = Path(__file__).resolve().parent
CONFIGS = next(f / "configs" for f in (_PACKAGE, _PACKAGE.parent) if (f / "configs").is_dir())

UNITS = ("steps", "epochs", "examples")

# Keys whose values may have other types than the recipe's own.
EXTRA_TYPES: dict[str, tuple[type, ...]] = {
    "model.image_size": (int, tuple),
    "model.rope_base": (float, types.NoneType),
    "model.layer_scale_init": (float, types.NoneType),
    "optim.lr": (float, types.NoneType),
    "optim.base_lr": (float, types.NoneType),
    "optim.clip_norm": (float, types.NoneType),
    "optim.spike_factor": (float, types.NoneType),
    "optim.ema_decay": (float, types.NoneType),
}


class Variant(NamedTuple):
    """A size and patch side such as L/14, and the model fields it stands for."""

    name: str
    fields: dict[str, int | float]


def parse_arg(arg: str, default: str, presets: Sequence[str]) -> tuple[Variant, str]:
    """Reads a recipe's argument ``SIZE/PATCH[,PRESET]``, parts in any order.

    Raises:
        UserError: a part is neither a variant nor one of the presets.
    """
    variant, preset = default, presets[0]
    for part in filter(None, arg.split(",")):
        if part in presets:
            preset = part
        elif "/" in part:
            variant = part
        else:
            raise UserError(
                f"config argument {part!r}: give SIZE/PATCH such as {default}, or one of {', '.join(presets)}"
            )
    return Variant(variant, parse_variant(variant)), preset


def load_config(spec: str) -> ConfigDict:
    """Runs ``get_config(arg)`` of ``FILE.py[:arg]``.

    A relative path that does not exist is looked for beside the package, so that the recipes that
    come with it are found from any folder.

    Raises:
        UserError: no such file, or it has no ``get_config``.
    """
    path, _, arg = spec.partition(":")
    module = _load_module(_find_config(path))
    if not hasattr(module, "get_config"):
        raise UserError(f"config {path!r} has no function get_config(arg)")
    return module.get_config(arg)


def base_config() -> ConfigDict:
    """Every key with its default: what recipes start from."""
    return load_config(str(CONFIGS / "base.py"))


def _find_config(path: str) -> Path:
    for candidate in (Path(path), CONFIGS.parent / path):
        if candidate.is_file():
            return candidate
    known = sorted(recipe.name for recipe in CONFIGS.glob("*.py"))
    raise UserError(
        f"config file {path!r} does not exist; there are configs/{{{', '.join(known)}}}"
    )


def _load_module(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"nepa_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Overrides


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets keys such as ``optim.lr`` from text.

    Raises:
        UserError: all unknown keys and wrong types, in one message.
    """
    problems = [
        problem for key, text in overrides.items() if (problem := _override(config, key, text))
    ]
    _raise(problems)


def _override(config: ConfigDict, key: str, text: str) -> str | None:
    section, _, name = key.rpartition(".")
    known = flat_keys(config)
    sibling = _same_duration(known, key)
    if key not in known and sibling is None:
        nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
        return f"{key} = {text}: there is no such key; did you mean {nearest}?"
    allowed = EXTRA_TYPES.get(key, (float,) if sibling else (type(known[key]),))
    value = parse_value(text, allowed)
    if value is _WRONG:
        names = " or ".join("none" if t is types.NoneType else t.__name__ for t in allowed)
        return f"{key} = {text}: wrong type; write a value of type {names}"
    target = config[section] if section else config
    if sibling:
        del target[sibling.rpartition(".")[2]]
    with config.ignore_type():
        target[name] = value
    return None


def _same_duration(known: Mapping[str, Any], key: str) -> str | None:
    """The key that gives the same duration in another unit, if ``key`` is not there itself."""
    stem, _, unit = key.rpartition("_")
    if key in known or unit not in UNITS:
        return None
    return next((f"{stem}_{other}" for other in UNITS if f"{stem}_{other}" in known), None)


_WRONG = object()


def parse_value(text: str, allowed: Sequence[type]) -> Any:
    """Text as a value of an allowed type, else the marker ``_WRONG``. Whole numbers pass as floats."""
    if str in allowed:
        return text
    try:
        value = ast.literal_eval(
            {"true": "True", "false": "False", "none": "None"}.get(text.lower(), text)
        )
    except (ValueError, SyntaxError):
        return _WRONG
    if type(value) in allowed:
        return value
    if type(value) is int and float in allowed:
        return float(value)
    if type(value) is float and value.is_integer() and int in allowed:
        return int(value)
    return _WRONG


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every leaf under its dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            leaves |= flat_keys(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def _raise(problems: Sequence[str]) -> None:
    if problems:
        first, *others = problems
        raise UserError(f"config: {first}", *others)


# Validation


def validate(
    config: ConfigDict, objective_problems: Callable[[ConfigDict], list[str]] | None = None
) -> None:
    """Checks the whole config before anything is built.

    Raises:
        UserError: one line for each problem, as ``path = value: problem; try …``.
    """
    problems = _choice_problems(config) + _model_problems(config)
    problems += data_problems(loader_config(config)) + _run_problems(config)
    if not problems and objective_problems is not None:
        problems += objective_problems(config)
    _raise(problems)


CHOICES: dict[str, tuple[str, ...]] = {
    "model.mlp": ("gelu", "swiglu", "geglu"),
    "model.posemb": ("none", "sincos", "learned"),
    "model.init": ("normal", "xavier"),
    "run.dtype": ("auto", "float32", "bfloat16"),
    "run.reduce_dtype": ("float32", "bfloat16"),
    "run.remat": ("none", "names", "dots", "full"),
}


def _choice_problems(config: ConfigDict) -> list[str]:
    leaves = flat_keys(config)
    return [
        f"{key} = {leaves[key]}: not a choice; try {' or '.join(choices)}"
        for key, choices in CHOICES.items()
        if leaves[key] not in choices
    ]


def image_size(config: ConfigDict) -> tuple[int, int]:
    """Height and width in px."""
    size = config.model.image_size
    return (size, size) if isinstance(size, int) else tuple(size)


def loader_config(config: ConfigDict) -> LoaderConfig:
    """What the loader needs to know of a run."""
    data = config.data
    return LoaderConfig(
        path=data.path,
        split=data.split,
        image_size=image_size(config),
        channels=config.model.in_channels,
        batch_size=data.batch_size,
        seed=config.run.seed,
        augment=data.augment,
        crop_scale=tuple(data.crop_scale),
        crop_pct=data.crop_pct,
        interpolation=data.interpolation,
        flip=data.flip,
        policy=data.policy,
        erase_prob=data.erase_prob,
        num_workers=data.num_workers,
        num_threads=data.num_threads or os.cpu_count() or 1,
        read_ahead=data.read_ahead,
        max_bad_rate=data.max_bad_rate,
        decode=data.decode,
    )


def _model_problems(config: ConfigDict) -> list[str]:
    model, problems = config.model, []
    size, patch = image_size(config), model.patch_size
    if patch < 1 or any(side % patch or side < patch for side in size):
        near = [max(round(side / max(patch, 1)), 1) * max(patch, 1) for side in size]
        problems.append(
            f"model.patch_size = {patch}: does not divide model.image_size = {model.image_size}; "
            f"try model.image_size={near[0] if near[0] == near[1] else tuple(near)}"
        )
    if model.num_heads < 1 or model.embed_dim % model.num_heads:
        problems.append(
            f"model.num_heads = {model.num_heads}: does not divide embed_dim = {model.embed_dim}; try {_divisor(model.embed_dim, model.num_heads)}"
        )
    elif model.rope_base is not None and model.embed_dim // model.num_heads % 4:
        problems.append(
            f"model.num_heads = {model.num_heads}: rotary needs a head width that 4 divides, not {model.embed_dim // model.num_heads}; try another num_heads or rope_base=none"
        )
    if model.posemb == "sincos" and model.embed_dim % 4:
        problems.append(
            f"model.embed_dim = {model.embed_dim}: sine-cosine positions need a multiple of 4; try {model.embed_dim // 4 * 4 + 4}"
        )
    for key in ("pixel_mean", "pixel_std"):
        if len(model[key]) != model.in_channels:
            problems.append(
                f"model.{key} = {model[key]}: needs one value per channel; try {tuple(model[key][:1]) * model.in_channels}"
            )
    if not 0 <= model.drop_path_rate < 1:
        problems.append(
            f"model.drop_path_rate = {model.drop_path_rate}: must be at least 0 and below 1; try 0.1"
        )
    return problems


def _divisor(dim: int, near: int) -> int:
    return min((n for n in range(1, dim + 1) if dim % n == 0), key=lambda n: abs(n - near))


def _run_problems(config: ConfigDict) -> list[str]:
    data, optim, problems = config.data, config.optim, []
    if not data.path:
        problems.append(
            "data.path is not set: no images to train on; try --config.data.path=DIR, a folder that `nepa-jax data prepare` wrote"
        )
    if optim.accum_steps < 1 or data.batch_size % optim.accum_steps:
        problems.append(
            f"optim.accum_steps = {optim.accum_steps}: does not divide data.batch_size = {data.batch_size}; try {_divisor(data.batch_size, optim.accum_steps)}"
        )
    if (optim.lr is None) == (optim.base_lr is None):
        problems.append(
            f"optim.lr = {optim.lr}, optim.base_lr = {optim.base_lr}: give exactly one; try "
            + ("optim.base_lr=1.5e-4" if optim.lr is None else "optim.base_lr=none")
        )
    if optim.ema_decay is not None and not 0 <= optim.ema_decay < 1:
        problems.append(
            f"optim.ema_decay = {optim.ema_decay}: must be at least 0 and below 1; try 0.9999 or none"
        )
    if optim.clip_norm is not None and optim.clip_norm <= 0:
        problems.append(f"optim.clip_norm = {optim.clip_norm}: must be positive; try 1.0 or none")
    if optim.spike_factor is not None and optim.spike_factor <= 1:
        problems.append(
            f"optim.spike_factor = {optim.spike_factor}: must be above 1; try 10.0 or none"
        )
    first, end = config.log.profile_steps
    if not 0 <= first <= end:
        problems.append(
            f"log.profile_steps = {config.log.profile_steps}: must be (first, one after the last); "
            "try (10, 15), or (0, 0) for none"
        )
    problems += [
        f"{key} = {value}: must be positive; try 1"
        for key, value in flat_keys(config).items()
        if key.startswith(("schedule.total_", "checkpoint.every_", "log.every_")) and value <= 0
    ]
    return problems


# Resolution


def resolve(config: ConfigDict, num_examples: int, platform: str) -> ConfigDict:
    """A frozen copy in which every choice is made: steps for durations, lr, dtype, image size.

    Args:
        num_examples: images in the training split, for durations in epochs.
        platform: ``cpu``, ``gpu`` or ``tpu``.
    """
    resolved = with_later_keys(ConfigDict(config.to_dict()))
    with resolved.ignore_type():
        for key in list(flat_keys(config)):
            section, _, name = key.rpartition(".")
            stem, _, unit = name.rpartition("_")
            if unit in UNITS and stem in ("total", "warmup", "every", "keep_every"):
                del resolved[section][name]
                value = config[section][name]
                steps = _steps(value, unit, config.data.batch_size, num_examples)
                resolved[section][f"{stem}_steps"] = steps
        resolved.model.image_size = image_size(config)
        if config.optim.lr is None:
            resolved.optim.lr = config.optim.base_lr * config.data.batch_size / 256
        if config.run.dtype == "auto":
            resolved.run.dtype = "float32" if platform == "cpu" else "bfloat16"
    return resolved


def _steps(value: float, unit: str, batch_size: int, num_examples: int) -> int:
    """An epoch is num_examples // batch_size steps, as with loaders that drop the last batch."""
    if unit == "epochs":
        return round(value * (num_examples // batch_size))
    return round(value / batch_size if unit == "examples" else value)


def to_json(config: ConfigDict) -> str:
    """The config as JSON text with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The inverse of :func:`to_json`; lists become tuples as in recipes."""
    return with_later_keys(ConfigDict(_tuples(json.loads(text))))


# Keys that configs saved earlier lack, with what such a config stands for.
_LATER_KEYS: dict[str, dict[str, Any]] = {
    "model": dict(qkv_bias=True, qk_norm_bias=False),
    "nepa_jax.objectives.nepa": dict(causal=True),
    "nepa_jax.objectives.mae": dict(decoder_mlp_ratio=4.0),
}


def with_later_keys(config: ConfigDict) -> ConfigDict:
    """The config itself, with the keys that came after it was written."""
    objective = config.get("objective", ConfigDict())
    for section, keys in (("model", "model"), ("objective", objective.get("name", ""))):
        for name, value in _LATER_KEYS.get(keys, {}).items():
            if section in config and name not in config[section]:
                config[section][name] = value
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
