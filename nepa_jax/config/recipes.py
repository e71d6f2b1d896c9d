"""Recipes: files whose ``get_config`` gives a run's config."""

import importlib.util
import inspect
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.models.sizes import parse_variant

# The recipes: beside the package in a checkout, inside it once installed.
_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(f / "configs" for f in (_PACKAGE, _PACKAGE.parent) if (f / "configs").is_dir())


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


def parse_choice(arg: str, choices: Sequence[str]) -> str:
    """A recipe's argument that is one of a few words; the first without one.

    Raises:
        UserError: it is none of them.
    """
    if arg and arg not in choices:
        raise UserError(f"config argument {arg!r}: give {' or '.join(choices)}")
    return arg or choices[0]


def base_config() -> ConfigDict:
    """Every key with its default: what recipes start from."""
    return recipe_module(CONFIGS / "base.py").get_config()


def recipe_files() -> list[Path]:
    """The recipes that come with the package."""
    return sorted(path for path in CONFIGS.glob("*.py") if path.name != "base.py")


def listed_recipes() -> str:
    return f"configs/{{{', '.join(path.name for path in recipe_files())}}}"


def recipe(path: Path, arg: str) -> Any:
    """What a recipe's ``get_config`` gives.

    Raises:
        UserError: the recipe fails, or takes no argument.
    """
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
        return get_config(arg) if takes_arg else get_config()


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
