"""Text that others wrote: shown without escape sequences, read as JSON without surprises."""

import json
import math
from pathlib import Path
from typing import Any


def printable(text: str) -> str:
    """The text on one line, with every character that is not printed written as an escape.

    Names of files, classes, arrays and machines come from strangers: a terminal would obey their
    escape sequences, and a line break in one would make two lines of ours.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def read_json(path: str | Path, kind: type | None = None) -> Any:
    """The value in a JSON file.

    Args:
        path: of the file.
        kind: what the value must be, such as ``dict``; None: anything.

    Raises:
        OSError: the file cannot be read.
        ValueError: as :func:`parse_json`.
    """
    return parse_json(Path(path).read_bytes(), kind)


def parse_json(data: bytes, kind: type | None = None) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: it is not UTF-8, not JSON, nested too deep to read, or of another kind.
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("is nested too deep") from None
    except ValueError as error:  # of UTF-8 or of JSON
        raise ValueError(f"is not JSON text ({printable(str(error))})") from None
    if kind is not None and not isinstance(value, kind):
        raise ValueError(f"holds a JSON {type(value).__name__}, not a {kind.__name__}")
    return value


def to_json(value: Any) -> str:
    """JSON that every parser takes: NaN and the infinities, which JSON has no words for, are null."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
