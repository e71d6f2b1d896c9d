"""Which parquet files of a folder are those of a split, by the names that the hub and others use."""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.split_names import same_split, split_of, splits_of

SUFFIXES = (".parquet", ".parq", ".pq")
# train-00000-of-00002, train-00000-of-00002-0123456789abcdef, train_0, 0000, part-0
SHARD = re.compile(r"(?:(.*?)[-_.])?(\d+)(?:-of-(\d+))?(?:-[0-9a-f]{8,})?", re.IGNORECASE)
# Folders that say nothing of what is in them; any other is a subset (a "config").
NEUTRAL = frozenset(("", "data", "dataset", "parquet", "parquets", "refs", "convert"))

UNNAMED = "parquet files that are named after no split, beside those that are"
MISSING = "parquet files that are missing (fetch them)"


@dataclass(frozen=True)
class Part:
    """A file, and what its path says: the subset, the split, and which shard of how many."""

    file: Path
    subset: str
    split: str | None
    shard: int | None
    of: int | None


def walk(root: Path) -> Iterator[Path]:
    """All files that are not hidden, each folder once."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def parquet_files(root: Path) -> list[Path]:
    return sorted(file for file in walk(root) if file.suffix.lower() in SUFFIXES)


def split_files(path: Path, split: str, left_out: LeftOut) -> Sequence[Path]:
    """The files of a split, in order."""
    if path.is_file():
        return [path]
    files = parquet_files(path)
    named_after = splits_of({_shard(file)[0] for file in files})
    parts = [_part(file, path, named_after) for file in files]
    named = [part for part in parts if part.split]
    chosen = named or parts
    for part in parts if named else ():
        if not part.split:
            left_out.add(UNNAMED, str(part.file))
    splits = sorted({part.split for part in named if part.split})
    if splits:
        wanted = same_split(splits, split)
        if len(wanted) != 1:
            words = "more than one set of files for" if wanted else "no"
            raise UserError(f"{path} has {words} split {split!r}: choose --split from {splits}")
        if wanted != [split]:
            warn(f"split {split!r} is read from {wanted[0]}")
        chosen = [part for part in named if part.split == wanted[0]]
    _check_subsets(chosen, path)
    _check_shards(chosen, path, left_out)
    return [part.file for part in chosen]


def _part(file: Path, root: Path, named_after: Collection[str]) -> Part:
    """`named_after` has the words that mean a split, among those that files begin with."""
    folders = list(file.relative_to(root).parts[:-1])
    prefix, number, total = _shard(file)
    if prefix in named_after or (prefix and total):  # any word, where it is of the hub's form
        return Part(file, _subset(folders), prefix, number, total)
    inner = next((name for name in reversed(folders) if split_of(name)), None)
    if inner:
        folders.remove(inner)
    return Part(file, _subset(folders), inner, number, total)


def _shard(file: Path) -> tuple[str, int | None, int | None]:
    """What a file's name begins with, its number and how many there are."""
    stem = file.name[: -len(file.suffix)]
    found = SHARD.fullmatch(stem)
    if not found:
        return stem, None, None
    prefix, number, total = found.groups()
    return prefix or "", int(number), int(total) if total else None


def _subset(folders: Sequence[str]) -> str:
    return "/".join(name for name in folders if name.lower() not in NEUTRAL)


def _check_subsets(parts: Sequence[Part], path: Path) -> None:
    if len(subsets := sorted({part.subset for part in parts})) > 1:
        names = ", ".join(name or "files in no folder" for name in subsets)
        raise UserError(
            f"{path} has {len(subsets)} subsets side by side ({names}): give one of them as the "
            "source, or put the files into one folder if they are one"
        )


def _check_shards(parts: Sequence[Part], path: Path, left_out: LeftOut) -> None:
    """Raises UserError if files of two uploads lie beside each other; tells what is missing."""
    totals = {part.of for part in parts}
    if len(totals) > 1:
        names = ", ".join(sorted(part.file.name for part in parts)[:3])
        raise UserError(
            f"{path} has files of several uploads of a split ({names}, ...): leave those of one"
        )
    shards = {part.shard for part in parts}
    for total in totals - {None}:
        if (number := total - len(shards)) > 0:
            first = next(shard for shard in range(total) if shard not in shards)
            left_out.add(MISSING, f"{parts[0].split}-{first:05d}-of-{total:05d}", number)
