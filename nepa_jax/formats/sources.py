"""Opens weights from anywhere: finds the files, their format, and the config they belong to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.base.sections import shown
from nepa_jax.config import apply_overrides, base_config, flat_keys, from_json, model_problems
from nepa_jax.formats.config_tables import CONFIG_TABLES, MAE, SUPERVISED
from nepa_jax.formats.configs import DROPOUTS, import_config
from nepa_jax.formats.constants import class_and_sincos
from nepa_jax.formats.convert import Arrays
from nepa_jax.formats.files import FLOATS, equal, read_settings
from nepa_jax.formats.infer import Inferred, infer_config
from nepa_jax.formats.names import Named, aside_lines, table_names
from nepa_jax.formats.places import find_weights, parse_place, read_weights
from nepa_jax.formats.tables import FORMATS, Format, known_format
from nepa_jax.models.sizes import image_size
from nepa_jax.objectives.base import Objective, saved_objective

PROVENANCE = "provenance.json"
MODEL_TYPES = {  # of Transformers' config.json
    table.theirs["model_type"]: name
    for name, table in CONFIG_TABLES.items()
    if "model_type" in table.theirs
}
# Parts of a file that only one objective has: without it they are left aside.
PARTS = {"decoder": MAE, "head": SUPERVISED, "fc_norm": SUPERVISED}


@dataclass(frozen=True)
class Source:
    """Weights on disk and what is known of them."""

    path: Path
    format: Format
    config: ConfigDict  # resolved, and proven; of a model that these arrays should fit
    objective: Objective
    arrays: Arrays
    metadata: Mapping[str, str]  # of our own exports, else empty


@dataclass(frozen=True)
class Choices:
    """What a user says of weights instead of the files.

    Attributes:
        overrides: text by key, such as ``{"model.num_heads": "12"}``.
        objective: the dotted name of a module of one's own.
    """

    overrides: Mapping[str, str] = field(default_factory=dict)
    objective: str | None = None


FILES_SAY = Choices()


def open_source(path: str, name: str | None = None, choices: Choices = FILES_SAY) -> Source:
    """Opens a folder or a weight file; arrays are read when asked for.

    What is guessed or left aside is told on stderr, a line for each kind.

    Args:
        path: a folder with weights and config, or a weight file. ``PATH#ENTRY`` takes one of several
            encoders in a file, ``PATH:FORMAT`` says the format.
        name: a format; None: what ``path`` or the files themselves say.
        choices: what holds instead of what the files say.

    Raises:
        UserError: nothing to open there, damaged files, a config that no model has, or no way to tell
            format or config.
    """
    place = parse_place(path)
    if name is not None:
        known_format(name)
    weights = find_weights(place.path)
    stored = read_weights(weights)
    metadata = _own_metadata(stored.metadata, weights)
    table = known_format(
        name or place.format or metadata.get("nepa_jax.format") or _guess_format(weights)
    )
    named = table_names(stored.arrays, table, place.entry, str(weights))
    table = _with_found_positions(table, named.arrays)
    found = _find_config(weights, table, named.arrays, metadata, choices)
    objective = _proven(found.config, weights, named.arrays, choices)
    named = _without_other_parts(named, table, found.config)
    if jax.process_index() == 0:
        lines = [*_guess_lines(found.config, found.guesses), *found.notes]
        for line in [*lines, *aside_lines(named.aside)]:
            warn(f"{weights}: {line}")
    return Source(weights, table, found.config, objective, named.arrays, metadata)


# Files


def _own_metadata(header: Mapping[str, str], weights: Path) -> Mapping[str, str]:
    """What our own exports say of themselves, in the header or in the file beside it."""
    if "nepa_jax.format" in header:
        return header
    path = weights.parent / PROVENANCE
    beside = read_settings(path)
    for key, value in beside.items():
        if not isinstance(value, str):
            raise UserError(f"{path}: {key} = {shown(value)}: must be text; get it again")
    return beside


def _guess_format(weights: Path) -> str:
    theirs = read_settings(weights.parent / "config.json")
    model_type, architecture = theirs.get("model_type"), theirs.get("architecture")
    if isinstance(model_type, str) and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    if isinstance(architecture, str):
        return "timm_eva" if architecture.startswith("eva") else "timm"
    raise UserError(
        f"{weights}: does not say its format; write {weights}:FORMAT, or --format=FORMAT where there is "
        f"such an option, with one of {', '.join(FORMATS)}"
    )


# Arrays


def _with_found_positions(table: Format, arrays: Arrays) -> Format:
    """The table with the class token's position where the file has it: grids are square mostly."""
    array = arrays.get(table.theirs("vit/pos_embed") or "")
    if array is None or len(array.shape) != 3:
        return table
    rows = array.shape[1]
    squares = {has: math.isqrt(rows - has) ** 2 == rows - has for has in (True, False)}
    if squares[table.class_position] or not squares[not table.class_position]:
        return table
    return table.with_class_position(not table.class_position)


def _without_other_parts(named: Named, table: Format, config: ConfigDict) -> Named:
    """Leaves heads and decoders aside that this config's objective does not have."""
    for part, owner in PARTS.items():
        if config.objective.name != owner:
            prefixes = tuple(
                rule.theirs.partition("{")[0]
                for rule in table.rules
                if rule.ours.startswith(f"{part}/")
            )
            named = named.without(part, [n for n in named.arrays if n.startswith(prefixes)])
    return named


# Config


def _find_config(
    weights: Path, table: Format, arrays: Arrays, metadata: Mapping[str, str], choices: Choices
) -> Inferred:
    """The config by our own header, by their file, or by the arrays' shapes; then by the user."""
    if metadata.get("nepa_jax.format") == table.name:
        found = Inferred(_own_config(metadata, weights))
    else:
        found = _with_pixels(_of_others(weights, table, arrays), weights.parent)
    if choices.overrides:
        apply_overrides(found.config, choices.overrides)
    _require_sound(weights, model_problems(found.config))
    if "model.posemb" not in choices.overrides:
        _set_positions(found.config, table, arrays)
    guesses = [key for key in found.guesses if key not in choices.overrides]
    return replace(found, guesses=guesses)


def _require_sound(weights: Path, problems: Sequence[str]) -> None:
    if problems:
        first, *others = problems
        raise UserError(f"{weights}: its config, or what is given in its place: {first}", *others)


def _own_config(metadata: Mapping[str, str], weights: Path) -> ConfigDict:
    """Raises UserError unless the header of our own export has a config with every section."""
    text = metadata.get("nepa_jax.model_config")
    if text is None:
        raise UserError(
            f"{weights}: says nepa_jax.format and no nepa_jax.model_config; get it again"
        )
    try:
        config = from_json(text)
    except ValueError as error:
        raise UserError(f"{weights}: nepa_jax.model_config {error}; get it again") from None
    for section in base_config():
        if not isinstance(config.get(section), ConfigDict):
            raise UserError(
                f"{weights}: nepa_jax.model_config: {section} = {shown(config.get(section))}: must be a "
                "section of a config; get it again"
            )
    return config


def _of_others(weights: Path, table: Format, arrays: Arrays) -> Inferred:
    path = weights.parent / "config.json"
    theirs = _their_config(path)
    if CONFIG_TABLES[table.name].by_shape:
        return infer_config(table, arrays, theirs, str(weights))
    if not theirs:
        raise UserError(
            f"{weights}: there is no config.json beside it; put the one that belongs to it there"
        )
    head = arrays.get(table.theirs("head/bias") or "")
    if head is not None and len(head.shape) == 1:  # two classes, the usual number, are not written
        theirs = {"num_labels": head.shape[0], **theirs}
    dropped = [f"{key} = {shown(theirs[key])}" for key in DROPOUTS if theirs.get(key)]
    notes = [f"left aside dropout ({', '.join(dropped)}): ours has none"] if dropped else []
    config = import_config(theirs, table.name, str(path))
    if table.full_qk_norms:
        config.model.qk_norm_bias = _has_norm_biases(table, arrays)
    return Inferred(config, notes=notes)


def _has_norm_biases(table: Format, arrays: Arrays) -> bool:
    """Whether the q/k-norms, which always have biases in these files, have any but zeros."""
    ends = tuple(
        table.theirs(f"vit/blocks/attn/{norm}/bias").partition("}")[2]
        for norm in ("q_norm", "k_norm")
    )
    found = (array for name, array in arrays.items() if name.endswith(ends))
    return any(np.any(np.asarray(array)) for array in found if str(array.dtype) in FLOATS)


def _their_config(path: Path) -> dict[str, Any]:
    """Their config.json; timm keeps the model's arguments in a section of it."""
    theirs = read_settings(path)
    if "architecture" not in theirs:
        return theirs
    arguments = _section(theirs, "model_args", path)
    return {**theirs, **arguments, "architectures": [theirs["architecture"]]}


def _section(settings: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    section = settings.get(key) or {}
    if not isinstance(section, dict):
        raise UserError(f"{path}: {key} = {shown(section)}: must be a section; get it again")
    return section


def _set_positions(config: ConfigDict, table: Format, arrays: Arrays) -> None:
    """Position tables are parameters here unless they are the sine-cosine ones."""
    array = arrays.get(table.theirs("vit/pos_embed") or "")
    if array is None or str(array.dtype) not in FLOATS or config.model.posemb == "learned":
        return
    height, width = image_size(config)
    grid, dim = (height // config.model.patch_size, width // config.model.patch_size), config.model.embed_dim  # fmt: skip
    if tuple(array.shape) != (1, grid[0] * grid[1] + table.class_position, dim):
        return  # told with the other shapes that do not fit
    config.model.posemb = "learned"
    if dim % 4 == 0:
        expected = class_and_sincos(grid, dim)[None, not table.class_position :]
        config.model.posemb = "sincos" if equal(array, expected) else "learned"


def _with_pixels(found: Inferred, folder: Path) -> Inferred:
    """With the normalisation that the preprocessing file speaks of; else the usual one is a guess."""
    processor = read_settings(folder / "preprocessor_config.json")
    path = folder / "config.json"
    timm = _section(read_settings(path), "pretrained_cfg", path)
    mean = processor.get("image_mean") or timm.get("mean")
    std = processor.get("image_std") or timm.get("std")
    model = found.config.model
    if mean and std:
        with found.config.ignore_type():  # proven with the rest
            model.update(pixel_mean=_as_tuple(mean), pixel_std=_as_tuple(std))
        return found
    if model.in_channels in (1, 2, 4):  # of colours, the recipe's
        model.pixel_mean = model.pixel_std = (0.5,) * model.in_channels
    return replace(found, guesses=[*found.guesses, "model.pixel_mean", "model.pixel_std"])


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _proven(config: ConfigDict, weights: Path, arrays: Arrays, choices: Choices) -> Objective:
    """The objective of a config, after all is known to be sound that a model is built from.

    Raises:
        UserError: a problem of the config, or a model that is much larger than the file.
    """
    objective = saved_objective(config, str(weights), choices.objective)
    _require_sound(weights, getattr(objective, "problems", lambda config: [])(config))
    problems = []
    longest = max((max(array.shape, default=1) for array in arrays.values()), default=0)
    for key, value in flat_keys(config).items():
        part = key.rpartition(".")[2]
        most = longest if part.endswith("embed_dim") else len(arrays) if part.endswith("depth") else None  # fmt: skip
        if most is not None and value > most:
            problems.append(f"{key} = {value:,}: more than these arrays can hold, {most:,} at most")
    _require_sound(weights, problems)
    return objective


def _guess_lines(config: ConfigDict, guesses: Sequence[str]) -> list[str]:
    """One line with every guess as the override that changes it."""
    values = flat_keys(config)
    words = [f"--config.{key}={_written(values[key])}" for key in dict.fromkeys(guesses)]
    told = f"guessed, as nothing says it: {' '.join(words)}; give `nepa-jax import` what is right"
    return [told] if words else []


def _written(value: Any) -> str:
    return str(value).replace(" ", "")
