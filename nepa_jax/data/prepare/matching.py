"""Which row of a table is for which image: by the ends of their paths."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.data.prepare.classes import normal
from nepa_jax.data.prepare.listing import IMAGE_SUFFIXES
from nepa_jax.data.prepare.members import File

Parts = tuple[str, ...]
Rows = Mapping[Parts, str]  # the class, by the parts of the path


def matched(rows: Rows, images: Sequence[File], source: Path) -> Mapping[str, Parts]:
    """The row of each image that has one, by the path of the image."""
    root = source.absolute().parts
    if not source.is_dir():  # an archive counts as a folder
        root = (*root[:-1], root[-1].partition(".")[0])
    root = path_parts("/".join(root))
    paths = {image.path: (*root, *path_parts(image.path)) for image in images}
    found: dict[str, Parts] = {}
    shared = len(os.path.commonprefix([row[:-1] for row in rows]))  # noqa: RUF071 (of parts)
    for skipped, key in ((0, tuple), (0, loose), (shared, loose)):
        if len(found) == len(paths):
            break
        keys = _keys(rows, set(found.values()), lambda row, n=skipped, key=key: key(row[n:]))
        if skipped:  # names alone come last
            keys = {end: row for end, row in keys.items() if len(end) > 1}
        found |= _same_ends(keys, _without(paths, found), key)
    return found | _same_names(
        _keys(rows, set(found.values()), loose_name), _without(paths, found), source
    )


def _without(paths: Mapping[str, Parts], found: Mapping[str, Parts]) -> Mapping[str, Parts]:
    return {path: parts for path, parts in paths.items() if path not in found}


def _keys(rows: Rows, used: set[Parts], key: Callable[[Parts], Parts]) -> Mapping[Parts, Parts]:
    """The rows that are not used yet, by a key; none of those that share a key, and no class."""
    keys: dict[Parts, Parts] = {}
    doubtful = set()
    for row in rows:
        if row not in used and rows[keys.setdefault(key(row), row)] != rows[row]:
            doubtful.add(key(row))
    return {end: row for end, row in keys.items() if end not in doubtful}


def _same_ends(
    rows: Mapping[Parts, Parts], paths: Mapping[str, Parts], key: Callable[[Parts], Parts]
) -> dict[str, Parts]:
    """The longest row that each path ends in. Raises UserError if several paths end in it."""
    longest = max(map(len, rows), default=0)
    found: dict[str, Parts] = {}
    for path, parts in paths.items():
        whole = key(parts)
        ends = (whole[-n:] for n in range(min(longest, len(whole)), 0, -1))
        if end := next((end for end in ends if end in rows), None):
            found[path] = rows[end]
    _check_unique(found)
    return found


def _same_names(
    rows: Mapping[Parts, Parts], paths: Mapping[str, Parts], source: Path
) -> dict[str, Parts]:
    """Rows and paths with the same name in other folders, if one path has it."""
    counts = Counter(map(loose_name, paths.values()))
    found = {
        path: rows[name]
        for path, parts in paths.items()
        if counts[name := loose_name(parts)] == 1 and name in rows
    }
    if found:
        path, row = next(iter(found.items()))
        warn(
            f"{len(found)} images of {source} are labelled by their names alone: --labels has "
            f"them in other folders, such as {'/'.join(row)} for {path}"
        )
    return found


def _check_unique(found: Mapping[str, Parts]) -> None:
    first: dict[Parts, str] = {}
    for path, row in found.items():
        if (other := first.setdefault(row, path)) != path:
            raise UserError(
                f"--labels has one line {'/'.join(row)} for two images, {other} and {path}: "
                "write their paths into it"
            )


def path_parts(name: str) -> Parts:
    """The folders and the file of a path, as any system writes it."""
    parts = normal(name).replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))


def suffix_of(name: str) -> str:
    """The suffix of an image's name; none, if it has another or none."""
    dot = name.rfind(".")
    return name[dot:] if dot > 0 and name[dot:].lower() in IMAGE_SUFFIXES else ""


def loose(path: Parts) -> Parts:
    """A path without the suffix of an image, in any case."""
    if not path:
        return ()
    name = path[-1].removesuffix(suffix_of(path[-1]))
    return tuple(part.casefold() for part in (*path[:-1], name))


def loose_name(path: Parts) -> Parts:
    return loose(path[-1:])
