"""What a section of a config may hold: the names of its keys, their types and their ranges."""

import ast
import difflib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WRONG = object()  # stands for a value of another type than a key has


@dataclass(frozen=True)
class Bound:
    """The numbers a key may have.

    Args:
        interval: the least and the largest, such as ``[0, 1)``; a round bracket leaves its end out.
        example: what to try.
        also: values beside these, such as None or 0 for "off".
        pair: two such numbers may stand for the one.
    """

    interval: str
    example: str
    also: tuple[int | None, ...] = ()
    pair: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        low, high = self.interval[1:-1].split(",")
        return float(low), float(high)

    def holds(self, value: Any) -> bool:
        """Whether a number, or each of a tuple, lies inside; NaN never does."""
        if isinstance(value, tuple):
            return all(map(self.holds, value))
        if value in self.also:
            return True
        low, high = self.ends
        above = value >= low if self.interval[0] == "[" else value > low
        return above and (value <= high if self.interval[-1] == "]" else value < high)

    def words(self) -> str:
        low, high = (f"{end:,.0f}" if abs(end) >= 1e4 else f"{end:g}" for end in self.ends)
        least = "at least" if self.interval[0] == "[" else "above"
        most = "at most" if self.interval[-1] == "]" else "below"
        return f"must be {least} {low} and {most} {high}; try {self.example}"


Bounds = Mapping[str, Bound]


def shown(value: Any) -> str:
    """A value in an error line; a very long one is cut."""
    text = value if isinstance(value, str) else _repr.repr(value)
    return text if len(text) <= 80 else f"{text[:60]} … ({len(text):,} characters)"


_repr = reprlib.Repr()
_repr.maxtuple, _repr.maxstring, _repr.maxother = 6, 60, 60


def section_problems(
    name: str, section: Mapping[str, Any], defaults: Mapping[str, Any], bounds: Bounds
) -> dict[str, str]:
    """What is wrong with a section: for each key that is missing, unknown, of another type or out of
    its range a line, as ``path = value: problem; try …``, by the key's path.

    Args:
        name: of the section, as in ``optim``.
        section: its keys and values.
        defaults: every key it can have; their types are the keys' types, None being a number's.
        bounds: of the numbers.
    """
    found = {
        f"{name}.{key}": f"{name}.{key} is missing; try {_written(default)}"
        for key, default in defaults.items()
        if key not in section
    }
    for key, value in section.items():
        path, bound = f"{name}.{key}", bounds.get(key)
        if key not in defaults:
            problem = f"there is no such key; {suggestion(name, key, defaults)}"
        elif (fit := fitted(value, defaults[key], bound)) is WRONG:
            problem = f"wrong type; write {wanted(defaults[key], bound)}"
        elif bound is not None and not bound.holds(fit):
            problem = bound.words()
        else:
            continue
        found[path] = f"{path} = {shown(value)}: {problem}"
    return found


def suggestion(section: str, key: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    """The key that may have been meant, or all that there are."""
    nearest = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    if nearest:
        return f"did you mean {section}.{nearest[0]}?"
    return f"those of {section} are {', '.join(known)}"


def fitted(value: Any, default: Any, bound: Bound | None) -> Any:
    """The value as one of the default's type, or ``WRONG``.

    Whole numbers pass as floats and the other way round, lists as tuples, NumPy's scalars as Python's.
    """
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        value = value.item()
    if value is None:
        return None if bound is not None and None in bound.also else WRONG
    if isinstance(value, list | tuple):
        if not isinstance(default, tuple) and not (bound and bound.pair):
            return WRONG
        kind = kind_of(default)
        if bound and bound.pair and len(value) != 2:
            return WRONG
        items = tuple(_fitted_item(item, kind) for item in value)
        return WRONG if WRONG in items else items
    return _fitted_item(value, float if default is None else type(default))


def kind_of(default: Any) -> type:
    """The type of a value, or of a tuple's; an empty one is of whole numbers."""
    if isinstance(default, tuple):
        return type(default[0]) if default else int
    return type(default)


def _fitted_item(value: Any, kind: type) -> Any:
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value) if abs(value) < 1 << 1023 else float("inf")
    if kind is int and type(value) is float and value.is_integer():
        return int(value)
    return WRONG


def parsed(text: str, default: Any, bound: Bound | None) -> Any:
    """Text as a value of the default's type, or ``WRONG``."""
    if isinstance(default, str):
        return text
    words = {"true": "True", "false": "False", "none": "None", "null": "None"}
    try:
        value = ast.literal_eval(words.get(text.strip().lower(), text.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return WRONG
    return fitted(value, default, bound)


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def wanted(default: Any, bound: Bound | None) -> str:
    """What a key's value looks like, in words."""
    if isinstance(default, tuple):
        kind = KINDS[kind_of(default)].removeprefix("a ")
        example = bound.example if bound is not None and not default else _written(default)
        return f"{kind}s in brackets, such as {example}"
    words = KINDS[float if default is None else type(default)]
    if bound is not None and bound.pair:
        words += f", or two in brackets: {bound.example}"
    return f"{words} or none" if bound is not None and None in bound.also else words


def _written(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def nearest_divisor(number: int, near: int) -> int:
    """The divisor of a number that is nearest to another."""
    divisors = (n for n in range(1, min(number, 65_536) + 1) if number % n == 0)
    return min(divisors, key=lambda n: abs(n - near))
