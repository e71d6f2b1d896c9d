"""What the folders of a tree of images mean: wrappers, splits and classes."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.members import File
from nepa_jax.data.prepare.split_names import same_split, split_of, splits_of

Parts = tuple[str, ...]
Level = Mapping[Parts, Mapping[str, str | None]]  # by parent and name: the split of each folder

DEPTHS = (0, 1, 2)  # of the splits in SPLIT/CLASS, CLASS/SPLIT and DOMAIN/CLASS/SPLIT

BESIDE = "images beside the folders of the splits"
FURTHER = "images in further folders of the same split"
LOOSE = "images outside of the class folders"


def choose_split(
    images: Sequence[File], split: str, source: Path, left_out: LeftOut
) -> Sequence[File]:
    """The images of `split`, without the folder that says so and those that wrap all the rest.

    All images, if no folders are named after splits. Raises UserError if some are, and not
    exactly one of them is for the wanted split.
    """
    images = _unwrap(images)
    levels = [_level(images, depth) for depth in DEPTHS]
    for depth, level in enumerate(levels):
        if _are_splits(level, depth, images):
            wanted = _wanted(level, split, source)
            images = _inside(images, depth, level, wanted, left_out)
            return choose_split(images, split, source, left_out)
    _check_doubtful(levels[0].get((), {}), source)
    return images


def in_classes(images: Sequence[File], source: Path, left_out: LeftOut) -> Sequence[File]:
    """The images that are in class folders; all of them, if there are no folders.

    Raises UserError if more images are outside of the folders than in them.
    """
    inside = [file for file in images if len(file.parts) > 1]
    loose = [file for file in images if len(file.parts) == 1]
    if not inside:
        return loose
    if len(loose) > len(inside):
        raise UserError(
            f"{source} has {len(loose)} images outside of the class folders, such as "
            f"{loose[0].path}, and {len(inside)} in them: move the ones or the others away"
        )
    for file in loose:
        left_out.add(LOOSE, file.path)
    classes = {file.parts[0] for file in inside}
    if len(classes) == 1:
        warn(f"all {len(inside)} images are of one class, the folder {classes.pop()!r}")
    return inside


def _folder(file: File, depth: int) -> str | None:
    """The folder of a file at a depth."""
    return file.parts[depth] if len(file.parts) > depth + 1 else None


def _without(file: File, depth: int) -> File:
    return replace(file, parts=file.parts[:depth] + file.parts[depth + 1 :])


def _level(images: Sequence[File], depth: int) -> Level:
    names: dict[Parts, set[str]] = {}
    for file in images:
        if len(file.parts) > depth + 1:
            names.setdefault(file.parts[:depth], set()).add(file.parts[depth])
    found = {parent: splits_of(siblings) for parent, siblings in names.items()}
    return {
        parent: {name: found[parent].get(name) for name in sorted(siblings)}
        for parent, siblings in names.items()
    }


def _unwrap(images: Sequence[File]) -> Sequence[File]:
    """Drops folders that hold all the rest: root/ in root/cat/1.jpg, root/dog/1.jpg."""
    while True:
        tops = _level(images, 0).get((), {})
        deep = sum(len(file.parts) > 2 for file in images)
        if len(tops) != 1 or any(tops.values()) or 2 * deep <= len(images):
            return images
        images = [_without(file, 0) if len(file.parts) > 1 else file for file in images]


def _are_splits(level: Level, depth: int, images: Sequence[File]) -> bool:
    """Whether the folders of a level that are named after splits are splits, and not classes."""
    kinds = {split for splits in level.values() for split in splits.values()} - {None}
    if not kinds:
        return False
    inside = [f for f in images if level.get(f.parts[:depth], {}).get(_folder(f, depth) or "")]
    if depth:  # of some classes, folders may have any names
        return len(kinds) > 1 and 2 * len(inside) > len(images)
    # A lone one beside others is a class, train/ beside bus/, unless it has classes itself.
    classes = {_folder(file, 1) for file in inside}
    return len(kinds) > 1 or all(level[()].values()) or len(classes - {None}) > 1


def _wanted(level: Level, split: str, source: Path) -> Mapping[Parts, str]:
    """The folder of the split, by the folder that it is in."""
    wanted = {parent: same_split(names, split) for parent, names in level.items()}
    names = sorted({name for folders in wanted.values() for name in folders})
    if any(len(folders) > 1 for folders in wanted.values()):
        raise UserError(
            f"{source} has more than one folder for split {split!r}: choose --split from "
            f"{', '.join(names)}"
        )
    if not names:
        known = {name for names in level.values() for name, found in names.items() if found}
        raise UserError(
            f"{source} has no split {split!r}: choose --split from {', '.join(sorted(known))}"
        )
    if names != [split]:
        warn(f"split {split!r} is read from {', '.join(names)}")
    return {parent: folders[0] for parent, folders in wanted.items() if folders}


def _inside(
    images: Sequence[File],
    depth: int,
    level: Level,
    wanted: Mapping[Parts, str],
    left_out: LeftOut,
) -> Sequence[File]:
    """The images in the wanted folders; of the rest, what no other split has is told."""
    kinds = {level[parent][name] for parent, name in wanted.items()}
    chosen = []
    for file in images:
        parent, folder = file.parts[:depth], _folder(file, depth)
        found = level[parent][folder] if folder else None
        if folder and folder == wanted.get(parent):
            chosen.append(_without(file, depth))
        elif found is None or found in kinds:
            left_out.add(FURTHER if found else BESIDE, file.path)
    return chosen


def _check_doubtful(folders: Collection[str], source: Path) -> None:
    """Of folders that are taken for classes: tells which of them speak of splits.

    Raises UserError if all of them do.
    """
    words = {name: {split_of(word) for word in re.findall("[A-Za-z]+", name)} for name in folders}
    kinds = {name: found - {None} for name, found in words.items()}
    doubtful = ", ".join(name for name, found in kinds.items() if found)
    several = len(set().union(*kinds.values())) > 1
    if several and all(kinds.values()):
        raise UserError(
            f"{source} has folders that are named like splits ({doubtful}): give one of them "
            "as the source"
        )
    if several or any(split_of(name) for name in folders):
        warn(f"{doubtful} of {source} is taken for a class, as the other {len(folders)} folders")
