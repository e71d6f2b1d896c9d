"""Configs: load a recipe, apply overrides, list every mistake at once, resolve units, save."""

import difflib
import importlib.util
import inspect
import json
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from nepa_jax.base.sections import (
    WRONG,
    Bound,
    fitted,
    parsed,
    section_problems,
    shown,
    suggestion,
    wanted,
)
from nepa_jax.base.text import parse_json, read_json
from nepa_jax.data.progress import warn
from nepa_jax.data.settings import LoaderConfig
from nepa_jax.data.settings import problems as data_problems
from nepa_jax.errors import UserError, in_short
from nepa_jax.models.sizes import parse_variant

# The recipes: beside the package in a checkout, inside it once installed.
_PACKAGE = Path(__file__).resolve().parent
CONFIGS = next(f / "configs" for f in (_PACKAGE, _PACKAGE.parent) if (f / "configs").is_dir())

UNITS = ("steps", "epochs", "examples")

# Every number a run understands, its range and what to try; defaults are in configs/base.py. Those of
# `data` are in nepa_jax.data.settings, those of an objective in its own file. A length or an interval
# (`total`, `warmup`, …) stands here without its unit.
BOUNDS: dict[str, dict[str, Bound]] = {
    "model": {
        "image_size": Bound("[1, 16384]", "224 or (224, 128)", pair=True),
        "patch_size": Bound("[1, 4096]", "16"),
        "in_channels": Bound("[1, 4]", "3"),
        "pixel_mean": Bound("[-10, 10]", "(0.5, 0.5, 0.5)"),  # of pixels in [0, 1]
        "pixel_std": Bound("[0.001, 10]", "(0.5, 0.5, 0.5)"),
        "embed_dim": Bound("[1, 65536]", "768"),
        "depth": Bound("[1, 1000]", "12"),
        "num_heads": Bound("[1, 4096]", "12"),
        "mlp_ratio": Bound("(0, 64]", "4.0"),
        "rope_base": Bound("[1, 1e9]", "100.0 or none", also=(None,)),
        "rope_rescale": Bound("[1, 100]", "2.0, or 1.0 for off"),
        "rope_jitter": Bound("[1, 100]", "1.5, or 1.0 for off"),
        "rope_shift": Bound("[0, 100]", "0.5, or 0.0 for off"),
        "layer_scale_init": Bound("[0, 100]", "1e-5 or none", also=(None,)),
        "drop_path_rate": Bound("[0, 1)", "0.1"),
        "norm_eps": Bound("(0, 0.1]", "1e-6"),
    },
    "optim": {
        "lr": Bound("(0, 1]", "1e-3 or none", also=(None,)),
        "base_lr": Bound("(0, 1]", "1.5e-4 or none", also=(None,)),
        "b1": Bound("[0, 1)", "0.9"),
        "b2": Bound("[0, 1)", "0.95"),
        "eps": Bound("(0, 0.1]", "1e-8"),
        "weight_decay": Bound("[0, 10]", "0.05"),
        "clip_norm": Bound("(0, 1e6]", "1.0 or none", also=(None,)),
        "spike_factor": Bound("(1, 1e6]", "10.0 or none", also=(None,)),
        "accum_steps": Bound("[1, 65536]", "1"),
        "ema_decay": Bound("[0, 1)", "0.9999 or none", also=(None,)),
    },
    "schedule": {
        "total": Bound("(0, 1e12]", "100"),
        "warmup": Bound("[0, 1e12]", "5, or 0 for none"),
        "final_lr": Bound("[0, 1]", "0.0"),
    },
    "mesh": {
        axis: Bound("[1, 1048576]", "1, or -1 for all that remain", also=(-1,))
        for axis in ("data", "fsdp", "tensor")
    },
    "checkpoint": {
        "every": Bound("(0, 1e12]", "1000"),
        "first_minutes": Bound("(0, 1e6]", "10.0, or 0 for none", also=(0,)),
        "keep_last": Bound("[1, 1000000]", "2"),
        "keep_every": Bound("(0, 1e12]", "10000, or 0 for none for good", also=(0,)),
    },
    "log": {
        "every": Bound("(0, 1e12]", "50"),
        "profile_steps": Bound("[0, 2147483647]", "(10, 15), or (0, 0) for none"),
        "watchdog_s": Bound("[1, 604800]", "600, or 0 for never", also=(0,)),
    },
    "run": {
        "seed": Bound("[0, 4294967295]", "0"),
        "max_skipped_steps": Bound("[0, 1000000]", "10"),
    },
}  # fmt: skip
MAX_STEPS = 2**31 - 1  # a step is an int32
MAX_PARAMETERS = 1e11  # four times the largest ViT there is
MAX_PATCHES = 65_536

CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "model": {
        "mlp": ("gelu", "swiglu", "geglu"),
        "posemb": ("none", "sincos", "learned"),
        "init": ("normal", "xavier"),
    },
    "run": {
        "dtype": ("auto", "float32", "bfloat16"),
        "reduce_dtype": ("float32", "bfloat16"),
        "remat": ("none", "names", "dots", "full"),
    },
}

OWN_OBJECTIVES = "nepa_jax.objectives"
OBJECTIVES = tuple(f"{OWN_OBJECTIVES}.{name}" for name in ("nepa", "mae", "supervised"))

# What other programs call our keys.
OTHER_NAMES = {
    "learning_rate": "optim.lr", "blr": "optim.base_lr", "min_lr": "schedule.final_lr", "wd": "optim.weight_decay",
    "beta1": "optim.b1", "beta2": "optim.b2", "betas": "optim.b1", "grad_clip": "optim.clip_norm",
    "clip_grad": "optim.clip_norm", "max_grad_norm": "optim.clip_norm", "gradient_accumulation_steps": "optim.accum_steps",
    "accum_iter": "optim.accum_steps", "ema": "optim.ema_decay", "epochs": "schedule.total_epochs",
    "num_epochs": "schedule.total_epochs", "steps": "schedule.total_steps", "num_steps": "schedule.total_steps",
    "max_steps": "schedule.total_steps", "warmup": "schedule.warmup_steps", "bs": "data.batch_size",
    "workers": "data.num_workers", "hidden_size": "model.embed_dim", "width": "model.embed_dim",
    "num_layers": "model.depth", "layers": "model.depth", "heads": "model.num_heads", "img_size": "model.image_size",
    "input_size": "model.image_size", "drop_path": "model.drop_path_rate", "precision": "run.dtype",
    "save_every": "checkpoint.every_steps", "log_every": "log.every_steps", "resume": "run.init_from",
}  # fmt: skip


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


# Loading


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
        raise UserError(f"config {path}: is what recipes start from; there are {_recipes()}")
    config = _saved_config(path, arg) if path.suffix == ".json" else _recipe(path, arg)
    apply_overrides(config, overrides)
    if path.suffix == ".json" and "objective.name" not in overrides:
        _require_own_objective(config, path)
    return config


def base_config() -> ConfigDict:
    """Every key with its default: what recipes start from."""
    return recipe_module(CONFIGS / "base.py").get_config()


def recipe_files() -> list[Path]:
    """The recipes that come with the package."""
    return sorted(path for path in CONFIGS.glob("*.py") if path.name != "base.py")


def _recipes() -> str:
    return f"configs/{{{', '.join(path.name for path in recipe_files())}}}"


def _find_config(spec: str) -> tuple[Path, str]:
    """The file and the argument behind its name."""
    if "://" in spec:
        raise UserError(f"config {spec!r}: is a URL, and this must be a file; copy it here")
    path, arg = (spec, "") if Path(spec).exists() else spec.partition(":")[::2]
    ours = CONFIGS.parent / path
    file = next((file for file in (Path(path), ours) if path and file.exists()), None)
    if file is None:
        raise UserError(f"config file {path!r} does not exist; there are {_recipes()}")
    file = file.resolve()
    if file.is_dir():
        file = file / "config.json"
        if not file.is_file():
            raise UserError(f"config {path!r}: is a folder without config.json; give a file")
    if file.suffix not in (".py", ".json"):
        raise UserError(
            f"config {path!r}: is neither a recipe (.py) nor a run's config.json; there are {_recipes()}"
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
    config = _checked(config, str(path))
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
        for key, default in _in_units_of(section, defaults).items():
            if key not in section:
                section[key] = default
                later.append(f"{name}.{key}={default}")
    if later:
        warn(f"config {path}: is of another version; added {', '.join(later)}")


def _recipe(path: Path, arg: str) -> ConfigDict:
    with _errors_in(path):
        module = recipe_module(path)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise UserError(f"config {path}: has no function get_config(arg)")
    with _errors_in(path):
        takes_arg = bool(inspect.signature(get_config).parameters)
        if arg and not takes_arg:
            raise UserError(
                f"config {path}: its get_config() takes no argument; leave ':{arg}' out"
            )
        config = get_config(arg) if takes_arg else get_config()
    return _checked(config, str(path))


def recipe_module(path: Path) -> types.ModuleType:
    """A recipe's code: ``get_config``, and what it says of itself in ``ARGUMENTS`` and ``PRESETS``."""
    if path.parent != CONFIGS and str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last: nothing installed is hidden by a file there
    spec = importlib.util.spec_from_file_location(f"nepa_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _errors_in(path: Path) -> Iterator[None]:
    """Whatever code of the user raises becomes one line with its place.

    Raises:
        UserError: in place of any other.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {in_short(error)}") from error
    except BaseException as error:  # a recipe may also exit
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).parent == path.parent]
        place = f"{own[-1].filename}, line {own[-1].lineno}" if own else f"config {path}"
        raise UserError(f"{place}: {in_short(error)}") from error


def _checked(config: Any, source: str) -> ConfigDict:
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
            for key, default in _in_units_of(config[name], defaults[name]).items():
                value = fitted(config[name].get(key), default, _bounds(name).get(key))
                if value is not WRONG:
                    _put(config[name], key, value)
    return config


def _put(section: ConfigDict, key: str, value: Any) -> None:
    """Sets a value as it is; ConfigDict may turn it into the type of the one that was there."""
    section[key] = value
    if type(section[key]) is not type(value):
        del section[key]
        section[key] = value


def _in_units_of(section: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults, each length under the name it has in the section: its unit may be another."""
    named: dict[str, Any] = {}
    for key, default in defaults.items():
        other = None if key in section else _in_another_unit(section, key)
        named |= {other: float(default)} if other else {key: default}
    return named


def _in_another_unit(section: Mapping[str, Any], key: str) -> str | None:
    """The section's key for the same length in another unit, if there is one."""
    stem, _, unit = key.rpartition("_")
    others = (f"{stem}_{other}" for other in UNITS if other != unit and unit in UNITS)
    return next((other for other in others if other in section), None)


def _bounds(name: str) -> dict[str, Bound]:
    """The bounds of a section, those of lengths under each of their names."""
    bounds = BOUNDS.get(name, {})
    return bounds | {f"{key}_{unit}": bound for key, bound in bounds.items() for unit in UNITS}


# Overrides


def apply_overrides(config: ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets keys such as ``optim.lr`` from text.

    Raises:
        UserError: all unknown keys and wrong types, in one message.
    """
    problems = [
        f"{key} beside {other}: the same length twice; leave one out"
        for key in overrides
        if (other := _in_another_unit(overrides, key)) and key < other
    ]
    for key, text in overrides.items():
        problem = _override(config, key, text)
        problems += [problem] if problem else []
    refuse(problems)


def _override(config: ConfigDict, key: str, text: str) -> str | None:
    name, _, rest = key.partition(".")
    section, known = config.get(name), _known(config, name)
    replaced = None if rest in known else _in_another_unit(known, rest)
    if rest not in known and replaced is None:
        return f"{key} = {shown(text)}: there is no such key; {_meant(config, key)}"
    default, bound = known[replaced or rest], _bounds(name).get(rest)
    value = parsed(text, float(default) if replaced else default, bound)
    if value is WRONG:
        return f"{key} = {shown(text)}: wrong type; write {wanted(default, bound)}"
    *parents, last = rest.split(".")
    for parent in parents:
        section = section[parent]
    if replaced:
        del section[replaced]
    with config.ignore_type():
        _put(section, last, value)
    return None


def _known(config: ConfigDict, name: str) -> dict[str, Any]:
    """The keys of a section with their defaults; an objective's are those its recipe has."""
    section = config.get(name)
    if not isinstance(section, ConfigDict) or name not in base_config():
        return {}
    return flat_keys(section) if name == "objective" else _in_units_of(section, base_config()[name])


def _meant(config: ConfigDict, key: str) -> str:
    """What a user may have had in mind with a key that does not exist."""
    name, _, rest = key.partition(".")
    known = _known(config, name)
    if known and not rest:
        return f"it is a section; its keys are {', '.join(known)}"
    everywhere = [f"{other}.{leaf}" for other in config for leaf in _known(config, other)]
    last = key.rpartition(".")[2]
    same = [other for other in everywhere if other.rpartition(".")[2] == last]
    near = difflib.get_close_matches(key, everywhere, n=1, cutoff=0.8)
    for found in (OTHER_NAMES.get(last), *same, *near):
        if found:
            return f"did you mean {found}?"
    return suggestion(name, rest, known) if known else f"the sections are {', '.join(config)}"


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every leaf under its dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            leaves |= flat_keys(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def refuse(problems: Sequence[str]) -> None:
    """Raises UserError with a line for each problem, if there are any."""
    if problems:
        first, *others = problems
        raise UserError(f"config: {first}", *others)


# Validation


Check = Callable[[ConfigDict], list[str]]


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
    problems += [*found.values(), *_broken_rules(config, found)]
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
    return [*found.values(), *_broken_rules(config, found, "model.")]


def _section_problems(config: ConfigDict, name: str) -> dict[str, str]:
    """Keys of a section that are missing, unknown, of another type or out of range, a line each."""
    if name == "objective":  # its own file knows them
        return {}
    section, known = config[name], _known(config, name)
    found = {
        f"{name}.{key}": f"{name}.{key} = {shown(value)}: {_unknown(config, name, key)}"
        for key, value in section.items()
        if key not in known
    }
    rest = {key: value for key, value in section.items() if key in known}
    found |= section_problems(name, rest, known, _bounds(name))
    return _choice_problems(section, name) | found


def _unknown(config: ConfigDict, name: str, key: str) -> str:
    other = _in_another_unit(config[name], key)
    if other:
        return f"the same length as {name}.{other} = {config[name][other]}; leave one out"
    return f"there is no such key; {_meant(config, f'{name}.{key}')}"


def _choice_problems(section: ConfigDict, name: str) -> dict[str, str]:
    return {
        f"{name}.{key}": f"{name}.{key} = {shown(section[key])}: not a choice; try {' or '.join(choices)}"
        for key, choices in CHOICES.get(name, {}).items()
        if key in section and section[key] not in choices
    }


def _name_problems(name: Any) -> list[str]:
    """An objective of one's own is looked for beside the recipe and in the current folder, too."""
    line, known = f"objective.name = {name!r}: ", " or ".join(OBJECTIVES)
    if not name:
        return [f"{line}does not say what to learn; try {known}"]
    if not isinstance(name, str) or not all(map(str.isidentifier, name.split("."))):
        return [f"{line}is no name of a module; try {known}"]
    if _exists(name):
        return []
    here = Path.cwd()
    if any(here.joinpath(name.partition(".")[0] + end).exists() for end in (".py", "")):
        sys.path.append(str(here))
        importlib.invalidate_caches()
        if _exists(name):
            return []
    last = name.rpartition(".")[2]
    near = difflib.get_close_matches(f"{OWN_OBJECTIVES}.{last}", OBJECTIVES, 1, cutoff=0.9)
    return [
        f"{line}there is no such module, neither installed nor in PYTHONPATH, beside the config or in "
        f"{here}; try {near[0] if near else known}"
    ]


def _exists(module: str) -> bool:
    """Whether it can be found; what fails in a package around it is told when it is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as error:
        return not f"{module}.".startswith(f"{error.name}.")
    except Exception:  # of the package's own code
        return module in sys.modules or "." in module


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


# Rules between keys


def _patches(config: ConfigDict) -> list[str]:
    model, size, patch = config.model, image_size(config), config.model.patch_size
    if any(side % patch for side in size):
        near = [max(round(side / patch), 1) * patch for side in size]
        return [
            f"model.patch_size = {patch}: does not divide model.image_size = {model.image_size}; "
            f"try model.image_size={near[0] if near[0] == near[1] else tuple(near)}"
        ]
    patches = size[0] // patch * (size[1] // patch)
    if patches > MAX_PATCHES:
        return [
            f"model.patch_size = {patch}: cuts model.image_size = {model.image_size} into {patches:,} "
            f"patches, of {MAX_PATCHES:,} at most; try a larger one"
        ]
    return []


def _heads(config: ConfigDict) -> list[str]:
    dim, heads = config.model.embed_dim, config.model.num_heads
    if dim % heads:
        return [
            f"model.num_heads = {heads}: does not divide embed_dim = {dim}; try {_divisor(dim, heads)}"
        ]
    if config.model.rope_base is not None and dim // heads % 4:
        return [
            f"model.num_heads = {heads}: rotary needs a head width that 4 divides, not {dim // heads}; "
            "try another num_heads or rope_base=none"
        ]
    return []


def _divisor(number: int, near: int) -> int:
    divisors = (n for n in range(1, min(number, 65_536) + 1) if number % n == 0)
    return min(divisors, key=lambda n: abs(n - near))


def _sincos(config: ConfigDict) -> list[str]:
    dim = config.model.embed_dim
    if config.model.posemb != "sincos" or dim % 4 == 0:
        return []
    return [
        f"model.embed_dim = {dim}: sine-cosine positions need a multiple of 4; try {dim // 4 * 4 + 4}"
    ]


def _pixels(config: ConfigDict) -> list[str]:
    model = config.model
    return [
        f"model.{key} = {model[key]}: needs one value per channel; try {(0.5,) * model.in_channels}"
        for key in ("pixel_mean", "pixel_std")
        if len(model[key]) != model.in_channels
    ]


def _parameters(config: ConfigDict) -> list[str]:
    model = config.model
    hidden = round(model.embed_dim * model.mlp_ratio)
    matrices = 2 if model.mlp == "gelu" else 3
    count = model.depth * model.embed_dim * (4 * model.embed_dim + matrices * hidden)
    if hidden < 1:
        return [f"model.mlp_ratio = {model.mlp_ratio}: makes an MLP without units; try 4.0"]
    if count > MAX_PARAMETERS:
        return [
            f"model.embed_dim = {model.embed_dim}: {count / 1e9:,.0f} billion parameters at model.depth = "
            f"{model.depth}, of {MAX_PARAMETERS / 1e9:.0f} at most; try a size that `nepa-jax configs` lists"
        ]
    return []


def _data_path(config: ConfigDict) -> list[str]:
    if config.data.path:
        return []
    return [
        "data.path is not set: no images to train on; try --config.data.path=DIR, a folder that `nepa-jax data prepare` wrote"
    ]


def _accumulation(config: ConfigDict) -> list[str]:
    images, parts = config.data.batch_size, config.optim.accum_steps
    if images < 1 or images % parts == 0:
        return []
    return [
        f"optim.accum_steps = {parts}: does not divide data.batch_size = {images}; try {_divisor(images, parts)}"
    ]


def _learning_rate(config: ConfigDict) -> list[str]:
    optim, final = config.optim, config.schedule.final_lr
    if (optim.lr is None) == (optim.base_lr is None):
        return [
            f"optim.lr = {optim.lr}, optim.base_lr = {optim.base_lr}: give exactly one; try "
            + ("optim.base_lr=1.5e-4" if optim.lr is None else "optim.base_lr=none")
        ]
    if config.data.batch_size > 0 and final > _peak_lr(config):
        return [f"schedule.final_lr = {final}: is above the peak, {_peak_lr(config):.3g}; try 0.0"]
    return []


def _peak_lr(config: ConfigDict) -> float:
    optim = config.optim
    return optim.base_lr * config.data.batch_size / 256 if optim.lr is None else optim.lr


def _profile(config: ConfigDict) -> list[str]:
    steps = config.log.profile_steps
    if len(steps) == 2 and steps[0] <= steps[1]:
        return []
    return [
        f"log.profile_steps = {steps}: must be (first, one after the last); "
        "try (10, 15), or (0, 0) for none"
    ]


def _tensorboard(config: ConfigDict) -> list[str]:
    if not config.log.tensorboard or _exists("tensorboardX"):
        return []
    return [
        "log.tensorboard = True: tensorboardX is not installed; try pip install 'nepa-jax[tensorboard]'"
    ]


# A rule is asked only if its keys are right by themselves.
RULES: dict[Check, tuple[str, ...]] = {
    _patches: ("model.image_size", "model.patch_size"),
    _heads: ("model.embed_dim", "model.num_heads", "model.rope_base"),
    _sincos: ("model.embed_dim", "model.posemb"),
    _pixels: ("model.pixel_mean", "model.pixel_std", "model.in_channels"),
    _parameters: ("model.depth", "model.embed_dim", "model.mlp_ratio", "model.mlp"),
    _data_path: ("data.path",),
    _accumulation: ("data.batch_size", "optim.accum_steps"),
    _learning_rate: ("optim.lr", "optim.base_lr", "schedule.final_lr", "data.batch_size"),
    _profile: ("log.profile_steps",),
    _tensorboard: ("log.tensorboard",),
}


def _broken_rules(config: ConfigDict, wrong: Mapping[str, str], prefix: str = "") -> list[str]:
    problems = []
    for rule, keys in RULES.items():
        if all(key.startswith(prefix) and key not in wrong for key in keys):
            problems += rule(config)
    lengths = ("schedule.", "log.", "checkpoint.", "data.")
    if not prefix and not any(key.startswith(lengths) for key in wrong):
        problems += _length_problems(config, None)
    return problems


def has_own_mesh(config: ConfigDict) -> bool:
    """Whether the mesh is another than the default, which fits any devices."""
    return config.mesh.to_dict() != base_config().mesh.to_dict()


# Resolution


def resolve(config: ConfigDict, num_examples: int, platform: str) -> ConfigDict:
    """A frozen copy in which every choice is made: steps for durations, lr, dtype, image size.

    Args:
        num_examples: images in the training split, for durations in epochs.
        platform: ``cpu``, ``gpu`` or ``tpu``.

    Raises:
        UserError: a length is less than a step, or the warm-up as long as the run.
    """
    refuse(_length_problems(config, num_examples))
    resolved = with_later_keys(ConfigDict(config.to_dict()))
    with resolved.ignore_type():
        for length in _lengths(config):
            del resolved[length.section][length.key]
            steps = length.steps(config.data.batch_size, num_examples)
            resolved[length.section][f"{length.stem}_steps"] = steps
        resolved.model.image_size = image_size(config)
        resolved.optim.lr = _peak_lr(config)
        if config.run.dtype == "auto":
            resolved.run.dtype = "float32" if platform == "cpu" else "bfloat16"
    return resolved


class Length(NamedTuple):
    """A length or an interval of a run, such as ``schedule.total_epochs``."""

    section: str
    stem: str
    unit: str
    value: float

    @property
    def key(self) -> str:
        return f"{self.stem}_{self.unit}"

    def __str__(self) -> str:
        return f"{self.section}.{self.key} = {self.value:g}"

    def steps(self, batch_size: int, num_examples: int) -> int:
        """An epoch is num_examples // batch_size steps, as with loaders that drop the last batch."""
        if self.unit == "epochs":
            return round(self.value * (num_examples // batch_size))
        return round(self.value / batch_size if self.unit == "examples" else self.value)


def _lengths(config: ConfigDict) -> Iterator[Length]:
    for section in ("schedule", "checkpoint", "log"):
        for key, value in config[section].items():
            stem, _, unit = key.rpartition("_")
            if unit in UNITS and stem in BOUNDS[section]:
                yield Length(section, stem, unit, value)


def _length_problems(config: ConfigDict, num_examples: int | None) -> list[str]:
    """Lengths below a step or beyond counting, and a warm-up that does not fit the run.

    Without ``num_examples`` lengths in epochs are compared with one another only.
    """
    images, problems = config.data.batch_size, []
    if images < 1:
        return []
    lengths = {f"{length.section}.{length.stem}": length for length in _lengths(config)}
    known = [each for each in lengths.values() if num_examples or each.unit != "epochs"]
    for length in known:
        steps = length.steps(images, num_examples or 0)
        if length.value > 0 and steps < 1:
            shortest = f"{length.section}.{length.stem}_steps=1"
            problems.append(f"{length}: is less than a step of {images} images; try {shortest}")
        elif steps > MAX_STEPS:
            problems.append(f"{length}: is more than {MAX_STEPS:,} steps; try fewer")
    total, warmup = lengths["schedule.total"], lengths["schedule.warmup"]
    if problems:
        return problems
    if total in known and warmup in known:
        steps = total.steps(images, num_examples or 0)
        fits = warmup.steps(images, num_examples or 0) < steps
        fitting = f"warmup_steps={steps // 20}"
    else:  # of the same unit, or not to be compared yet
        fits = warmup.unit != total.unit or warmup.value < total.value
        fitting = f"warmup_epochs={total.value / 20:g}"
    if fits:
        return []
    return [
        f"{warmup}: the warm-up is not shorter than the run of {total}; try "
        f"--config.schedule.{fitting}, 5 % of the run"
    ]


def to_json(config: ConfigDict) -> str:
    """The config as JSON text with sorted keys."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ConfigDict:
    """The inverse of :func:`to_json`; lists become tuples as in recipes.

    Raises:
        ValueError: the text is no JSON object, or not of a config.
    """
    try:
        return with_later_keys(ConfigDict(_tuples(parse_json(text.encode(), dict))))
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"is no config ({in_short(error)})") from None


# Keys that configs saved earlier lack, with what such a config stands for.
_LATER_KEYS: dict[str, dict[str, Any]] = {
    "model": dict(qkv_bias=True, qk_norm_bias=False),
    "nepa_jax.objectives.nepa": dict(causal=True),
    "nepa_jax.objectives.mae": dict(decoder_mlp_ratio=4.0),
}


def with_later_keys(config: ConfigDict) -> ConfigDict:
    """The config itself, with the keys that came after it was written."""
    sections = [config.get(name) for name in ("model", "objective")]
    model, objective = (s if isinstance(s, ConfigDict) else ConfigDict() for s in sections)
    for section, keys in ((model, "model"), (objective, objective.get("name", ""))):
        for name, value in _LATER_KEYS.get(keys, {}).items():
            if name not in section:
                section[name] = value
    return config


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
