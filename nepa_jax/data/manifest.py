"""dataset.json of a prepared set: what it must hold, checked in one place for all who read it."""

import errno
import re
import reprlib
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nepa_jax.base.errors import UnavailableError, UserError, fails_again
from nepa_jax.base.text import parse_json

MANIFEST = "dataset.json"
FORMAT = "nepa_jax.array_record"
VERSION = 1

AGAIN = "copy it again or prepare the data again"

# Of splits and shards: a plain word is no way out of the folder, and nothing a terminal obeys.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


class Check(NamedTuple):
    """What a value must be, and how to say so."""

    good: Callable[[Any], bool]
    words: str


def _list_of(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(x, kind) for x in value)


def _count_from(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value < 1 << 62


def _matches(pattern: str | re.Pattern) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


_COUNT = Check(_count_from(0), "a whole number, 0 or more")
_OBJECT = Check(lambda value: isinstance(value, dict) and bool(value), "an object with a split")
_OBJECTS = Check(lambda value: _list_of(dict)(value) and bool(value), "a list of shards")

# Every field that is read, by the object that holds it.
FIELDS: Mapping[str, Mapping[str, Check]] = {
    "set": {
        "name": Check(lambda value: isinstance(value, str), "text"),
        "classes": Check(_list_of(str), "a list of class names"),
        "splits": _OBJECT,
    },
    "split": {
        "num_examples": Check(_count_from(1), "a whole number above 0"),
        "labelled": Check(lambda value: isinstance(value, bool), "true or false"),
        "fingerprint": Check(_matches("[0-9a-f]{64}"), "64 hexadecimal digits"),
        "shards": _OBJECTS,
    },
    "shard": {
        "file": Check(_matches(_WORD), "the plain name of a file in this folder"),
        "num_records": _COUNT,
        "bytes": _COUNT,
    },
}


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The contents of `path`/dataset.json.

    Raises UserError if the folder or the file is missing, or holds anything but what a reader of
    the set needs; UnavailableError if the storage does not answer.
    """
    root = Path(path)
    if not str(path):
        raise UserError(
            "no data set is named: make one with `nepa-jax data prepare`, give its folder"
        )
    if "://" in str(path):
        raise UserError(f"data folder {path} is not on this machine: mount it, or copy it here")
    file = root / MANIFEST
    try:
        data = _read_regular(file)
    except (FileNotFoundError, NotADirectoryError) as error:
        if root.is_dir():
            raise UserError(
                f"{root} has no {MANIFEST}: make one with `nepa-jax data prepare`"
            ) from error
        raise UserError(
            f"data folder {root} does not exist: make it with `nepa-jax data prepare`"
        ) from error
    except OSError as error:
        raise cannot_read(file, error) from error
    return check_manifest(data, str(file))


def check_manifest(data: bytes, file: str) -> dict[str, Any]:
    """A dataset.json as a dict. Raises UserError if anything in it is missing or odd."""
    try:
        manifest = parse_json(data, dict)
    except ValueError as error:
        raise UserError(f"{file} {error}: {AGAIN}") from error
    _check_version(manifest, file)
    if problem := next(_problems(manifest), None):
        raise UserError(f"{file}: {problem}; {AGAIN}")
    return manifest


def cannot_read(file: str | Path, error: OSError) -> UserError | UnavailableError:
    """What to raise where the system cannot read a file, for whatever reason."""
    if error.errno == errno.EMFILE:
        return UserError(
            f"{file} cannot be opened ({error.strerror}): raise the limit of this process with "
            "`ulimit -n`, or prepare the data again with fewer --shards"
        )
    if fails_again(error):
        return UserError(f"{file} cannot be read ({error.strerror}): {AGAIN}, or allow reading it")
    return UnavailableError(
        f"{file} cannot be read ({error.strerror}): look whether its storage is there and mounted, "
        "then give the same command again"
    )


def _read_regular(file: Path) -> bytes:
    """A pipe in the place of a file would be waited for, and a device has no end."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise OSError(errno.EISDIR, "not a regular file")
    return file.read_bytes()


def _check_version(manifest: Mapping[str, Any], file: str) -> None:
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{file} is another program's, or damaged: give a folder that `nepa-jax data prepare` "
            "wrote, or prepare it again"
        )
    if manifest.get("version") != VERSION:
        found = reprlib.repr(manifest.get("version"))
        raise UserError(
            f"{file} is of version {found}, and this nepa-jax reads version {VERSION}: "
            "update nepa-jax, or prepare it again"
        )


def _problems(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong, from the outside to the inside: only the first is sure to be one."""
    yield from _misfits(manifest, "set", "")
    for split, entry in manifest["splits"].items():
        if not _WORD.fullmatch(split) or not isinstance(entry, dict):
            yield f"splits holds {reprlib.repr(split)}, which is no split"
        yield from _misfits(entry, "split", f"splits.{split}.")
        for number, shard in enumerate(entry["shards"]):
            yield from _misfits(shard, "shard", f"splits.{split}.shards[{number}].")
        yield from _contradictions(entry, manifest["classes"], f"splits.{split}.")


def _misfits(found: Mapping[str, Any], kind: str, place: str) -> Iterator[str]:
    for key, check in FIELDS[kind].items():
        if key not in found:
            yield f"{place}{key} is missing"
        elif not check.good(found[key]):
            yield f"{place}{key} is {reprlib.repr(found[key])}, and must be {check.words}"


def _contradictions(entry: Mapping[str, Any], classes: list[str], place: str) -> Iterator[str]:
    held = sum(shard["num_records"] for shard in entry["shards"])
    if held != entry["num_examples"]:
        yield f"{place}num_examples is {entry['num_examples']}, and its shards hold {held} records"
    if len({shard["file"] for shard in entry["shards"]}) < len(entry["shards"]):
        yield f"{place}shards names a file twice"
    if entry["labelled"] and not classes:
        yield f"{place}labelled is true, and there are no classes"
    if "masks" in entry and not _are_masks(entry["masks"], classes):
        yield f"{place}masks is {reprlib.repr(entry['masks'])}, and must say what values mean"


def _are_masks(found: Any, classes: list[str]) -> bool:
    """Whether it says what the values of masks mean, and there are classes for them."""
    if not isinstance(found, dict) or found.keys() != {"ignore", "reduce_zero_label"}:
        return False
    ignore = found["ignore"]
    whole = type(ignore) is int and 0 <= ignore <= 255
    return whole and isinstance(found["reduce_zero_label"], bool) and 1 <= len(classes) <= 255
