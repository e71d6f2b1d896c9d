"""Applies a format's config table: their config files ↔ our ``model`` and ``objective`` sections."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.sections import shown
from nepa_jax.config import CONFIGS, flat_keys, load_config, resolve
from nepa_jax.formats.config_tables import CONFIG_TABLES, REQUIRED, ConfigTable, Not, Same, Task
from nepa_jax.models.sizes import image_size
from nepa_jax.objectives import encoder

MAX_WIDTH = 2**24  # of an MLP
# Of an MLP: whether it is gated, and the activation, as the official code writes them.
MLPS = {"gelu": (False, "gelu"), "swiglu": (True, "silu"), "geglu": (True, "gelu")}
# Written on export, but no matter to the numbers of a trained model.
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
FREE = ("initializer_range", "add_pooling_layer", "mask_ratio", "global_pool", *DROPOUTS)


# Ours to theirs


def export_config(config: ConfigDict, name: str) -> dict[str, Any]:
    """Their config keys of a run, with ``architectures`` naming the class.

    Raises:
        UserError: the format cannot hold this model.
    """
    table, flat = CONFIG_TABLES[name], _with_derived(config)
    _require_values(table.ours, flat, name)
    if table.square and not isinstance(flat["model.side"], int):
        raise UserError(
            f"model.image_size = {config.model.image_size}: format {name!r} can only hold square "
            "images; choose another --format"
        )
    task = _task_of(table, flat, name)
    _require_values(task.ours, flat, name)
    pairs = {key.theirs: key.export(flat[key.ours]) for key in (*table.keys, *task.keys)}
    return {"architectures": [task.architecture], **table.theirs, **task.theirs, **pairs}


def _require_values(wanted: Mapping[str, Any], flat: Mapping[str, Any], name: str) -> None:
    for key, value in wanted.items():
        if not _fits({key: value}, flat):
            held = flat[value.key] if isinstance(value, Same) else value
            raise UserError(
                f"{key} = {flat.get(key)}: format {name!r} can only hold "
                f"{'others' if isinstance(value, Not) else held}; choose another --format"
            )


def _task_of(table: ConfigTable, flat: Mapping[str, Any], name: str) -> Task:
    """The task of this objective; among several, the one all of whose keys fit, else the first."""
    tasks = [task for task in table.tasks if task.ours["objective.name"] == flat["objective.name"]]
    if not tasks:
        can_shrink = any(task.ours["objective.name"] == encoder.NAME for task in table.tasks)
        remedy = "add --encoder-only" if can_shrink else "choose another --format"
        raise UserError(
            f"objective.name = {flat['objective.name']}: format {name!r} holds no such model; "
            f"{remedy}"
        )
    return next((task for task in tasks if _fits(task.ours, flat)), tasks[0])


def _fits(wanted: Mapping[str, Any], flat: Mapping[str, Any]) -> bool:
    return all(_fits_one(flat.get(key), value, flat) for key, value in wanted.items())


def _fits_one(found: Any, wanted: Any, flat: Mapping[str, Any]) -> bool:
    if isinstance(wanted, Not):
        return found != wanted.value
    return found == (flat[wanted.key] if isinstance(wanted, Same) else wanted)


def _with_derived(config: ConfigDict) -> dict[str, Any]:
    """Flat keys, and those that others write otherwise: widths of MLPs, side of a square image, MLP."""
    flat, model, objective = flat_keys(config), config.model, config.objective
    height, width = image_size(config)
    gated, activation = MLPS[model.mlp]
    ratio, dim = objective.get("decoder_mlp_ratio", 0.0), objective.get("decoder_embed_dim", 0)
    floored = floored_ratio(model.mlp_ratio, model.embed_dim)
    return flat | {
        "model.mlp_dim": round(model.embed_dim * model.mlp_ratio),
        "model.floored_ratio": floored,
        "model.side": height if height == width else [height, width],
        "model.gated": gated,
        "model.activation": activation,
        "objective.decoder_mlp_dim": round(ratio * dim),
        "objective.floored_mlp_dim": int(floored * dim),
    }


def floored_ratio(ratio: float, width: int) -> float:
    """The ratio by which timm's code, which rounds down, makes an MLP as wide as ours."""
    dim = round(width * ratio)
    known = (ratio, dim / width, math.nextafter(dim / width, math.inf))
    return next(ratio for ratio in known if int(width * ratio) == dim)


# Theirs to ours


def import_config(theirs: Mapping[str, Any], name: str, source: str) -> ConfigDict:
    """A whole run config from their config file. What it holds is not proven: see :func:`problems`.

    Raises:
        UserError: a key is missing, or has a value that our model does not do.
    """
    table = CONFIG_TABLES[name]
    theirs = _with_number_of_labels(theirs)
    task = _their_task(table, theirs, source)
    for key, value in {**table.theirs, **task.theirs}.items():
        if key not in FREE and theirs.get(key, value) != value:
            raise UserError(
                f"{source}: {key} = {shown(theirs[key])} is not supported; only {value} is"
            )
    keys = (*table.keys, *task.keys)
    missing = [k.theirs for k in keys if k.theirs not in theirs and k.default is REQUIRED]
    if missing:
        raise UserError(
            f"{source}: lacks {', '.join(missing)}; give the config.json of the weights"
        )
    pairs = {key.ours: key.restore(theirs.get(key.theirs, key.default)) for key in keys}
    ours = {**table.ours, **task.ours}
    fixed = {key: value for key, value in ours.items() if not isinstance(value, Same | Not)}
    values = {**pairs, **table.assumed, **fixed}
    return run_config(table, values, source)


def known_values(name: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What a config file that may say little says of the keys of ours."""
    return {
        key.ours: key.restore(theirs[key.theirs])
        for key in CONFIG_TABLES[name].keys
        if key.theirs in theirs
    }


def _with_number_of_labels(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers writes the labels' names and leaves out their number."""
    labels = theirs.get("id2label")
    return {**({"num_labels": len(labels)} if isinstance(labels, dict) else {}), **theirs}


def _their_task(table: ConfigTable, theirs: Mapping[str, Any], source: str) -> Task:
    names = theirs.get("architectures") or [table.tasks[-1].architecture]
    if not isinstance(names, list):
        raise UserError(f"{source}: architectures = {shown(names)}: must be a list of names")
    tasks = [task for task in table.tasks if task.architecture in names]
    if not tasks:
        known = ", ".join(dict.fromkeys(task.architecture for task in table.tasks))
        raise UserError(
            f"{source}: architectures = {shown(names)} is not supported; known are {known}"
        )
    return next((task for task in tasks if _fits(task.theirs, theirs)), tasks[-1])


def _without_derived(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The inverse of :func:`_with_derived`.

    Raises:
        UserError: a value cannot be one of ours.
    """
    values = dict(values)
    if "model.floored_ratio" in values:
        ratio = _rounded_ratio(values.pop("model.floored_ratio"), values["model.embed_dim"])
        values["model.mlp_ratio"] = ratio
    for ours, width in (("model.mlp", "model"), ("objective.decoder_mlp", "objective.decoder")):
        if f"{ours}_dim" in values:
            dim = values.pop(f"{ours}_dim")
            embed_dim = values[f"{width}{'.' if width == 'model' else '_'}embed_dim"]
            values[f"{ours}_ratio"] = _ratio(dim, embed_dim, source)
    if "model.side" in values:
        values["model.image_size"] = _pair(values.pop("model.side"), source, "image_size")
    if "model.patch_size" in values:
        height, width = _pair(values["model.patch_size"], source, "patch_size")
        if height != width:
            raise UserError(
                f"{source}: patch_size = {(height, width)}: only square patches are supported"
            )
        values["model.patch_size"] = height
    if "model.gated" in values:
        pair = values.pop("model.gated"), values.pop("model.activation")
        mlp = next((name for name, known in MLPS.items() if known == pair), None)
        if mlp is None:
            raise UserError(
                f"{source}: hidden_act = {shown(pair[1])} with use_gated_mlp = {shown(pair[0])} is not "
                "supported; gelu is, and gated silu or gelu"
            )
        values["model.mlp"] = mlp
    return values


def _rounded_ratio(ratio: Any, width: Any) -> Any:
    """Ours of theirs; what is none is told with the other problems of the config."""
    if type(width) is not int or width < 1 or type(ratio) not in (int, float):
        return ratio
    return int(width * ratio) / width if abs(ratio) < MAX_WIDTH else ratio


def _ratio(dim: Any, embed_dim: Any, source: str) -> float:
    if type(dim) is not int or type(embed_dim) is not int or embed_dim < 1 or dim > MAX_WIDTH:
        raise UserError(
            f"{source}: widths of an MLP {shown(dim)} and of its tokens {shown(embed_dim)}: "
            f"must be whole numbers from 1 to {MAX_WIDTH:,}"
        )
    return dim / embed_dim


def _pair(side: Any, source: str, key: str) -> tuple[int, int]:
    """One side or two as two."""
    pair = tuple(side) if isinstance(side, list | tuple) else (side, side)
    if len(pair) != 2 or any(type(s) is not int for s in pair):
        raise UserError(
            f"{source}: {key} = {shown(side)}: must be a whole number, or a pair of them"
        )
    return pair


def run_config(table: ConfigTable, values: Mapping[str, Any], source: str) -> ConfigDict:
    """The recipe's config with these keys, resolved; no average is kept of imported weights.

    Raises:
        UserError: a value of the file at ``source`` cannot be one of ours.
    """
    config = load_config(str(CONFIGS / table.recipe))
    values = _without_derived(values, source)
    objective = {key: value for key, value in values.items() if key.startswith("objective.")}
    with config.ignore_type():
        if values["objective.name"] != config.objective.name:
            config.objective = ConfigDict()
        for key, value in (values | objective).items():
            section, _, name = key.partition(".")
            config[section][name] = value
        config.optim.ema_decay = None
        width = config.model.embed_dim
        if config.model.posemb == "sincos" and isinstance(width, int) and width % 4:
            config.model.posemb = "learned"  # no sine-cosine table is that wide
    # ImageNet-1k's size, for durations in epochs
    return resolve(config, num_examples=1_281_167, platform="cpu")
