"""The members of a folder, zip or tar as its directory has them, and the files that they come to."""

import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from nepa_jax.data.prepare.left_out import LeftOut

MAX_LINKS = 40  # that lead to one another, as Linux allows

OUTSIDE = "names that lead out of the archive"
AGAIN = "names that come again later (the last one counts)"
DEAD_LINKS = "links to no file of the archive"


@dataclass(frozen=True)
class File:
    """One file of a source: its size in bytes, and how to read it, in any order and thread.

    path: within the source. parts: of the path; later, what is left of them below the folder of
    a split.
    """

    path: str
    parts: tuple[str, ...]
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Member:
    """A file of an archive or folder, or a link to one: then `target` is its name."""

    name: str
    size: int = 0
    read: Callable[[], bytes] = bytes
    target: str | None = None


def files_of(members: Iterable[Member], left_out: LeftOut) -> list[File]:
    """The files as unpacking would leave them: of one name the last, and for a link its target."""
    found: dict[tuple[str, ...], Member] = {}
    for member in members:
        parts = parts_of(member.name)
        if not parts:
            left_out.add(OUTSIDE, member.name)
            continue
        if parts in found:
            left_out.add(AGAIN, member.name)
        found[parts] = member
    files = [(parts, _follow(member, found)) for parts, member in found.items()]
    for parts, member in files:
        if member is None:
            left_out.add(DEAD_LINKS, "/".join(parts))
    return [
        File("/".join(parts), parts, member.size, member.read) for parts, member in files if member
    ]


def parts_of(name: str) -> tuple[str, ...]:
    """The folders and the file of a name; none if it leads outside.

    A backslash in what follows the last slash stands between folders as well: so do programs
    for Windows write zips, and others unpack them.
    """
    folder, _, file = name.rpartition("/")
    path = f"{folder}/" + file.replace("\\", "/")
    parts = tuple(part for part in posixpath.normpath(path).split("/") if part not in ("", "."))
    return () if parts[:1] == ("..",) else parts


def _follow(member: Member | None, found: Mapping[tuple[str, ...], Member]) -> Member | None:
    """The file that a chain of links ends in; None if it ends in none."""
    for _ in range(MAX_LINKS):
        if member is None or member.target is None:
            return member
        member = found.get(parts_of(member.target))
    return None
