"""What is to be prepared: the examples of one split, and how a tree of files spells them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nepa_jax.data.archives import File
from nepa_jax.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
SPLIT_NAMES = frozenset(
    ("train", "training", "val", "valid", "validation", "test", "testing", "unlabeled")
)


@dataclass(frozen=True)
class Example:
    """One example to be written. `read` may raise any error; it may run in any thread."""

    name: str
    label: int | None
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Listing:
    """The examples of one split, and the class names by label: none if it is unlabelled."""

    examples: Sequence[Example]
    classes: tuple[str, ...]
    num_ignored: int = 0


def select(files: Sequence[File], split: str, source: Path) -> Listing:
    """The images of `split`, named relative to its folder, and their classes.

    A tree whose top folders are all named like splits (train, val, test, ...) has splits; any
    other tree is one split, whatever it is to be called. Folders that merely wrap the whole
    tree are skipped. A class is a folder; images in no folder are unlabelled.

    Raises UserError if there is no such split, no image, or images both in folders and beside.
    """
    visible = [file for file in files if not _hidden(file)]
    images = [file for file in visible if _is_image(file)]
    if not images:
        raise UserError(
            f"no images among the {len(visible)} files of {source}: "
            f"expected names ending in {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    num_ignored = len(visible) - len(images)
    images = _choose_split(_unwrap(images), split, source)
    classes = _classes(images, source)
    labels = {name: label for label, name in enumerate(classes)}
    return Listing([_example(file, labels) for file in images], classes, num_ignored)


def file_by_class(files: Sequence[File], labels: Mapping[str, str], source: Path) -> list[File]:
    """Puts each image into the folder of its class, as `labels` (file name to class) has it.

    Raises UserError if an image is not in `labels`.
    """
    images = [file for file in files if _is_image(file) and not _hidden(file)]
    unknown = [file.parts[-1] for file in images if file.parts[-1] not in labels]
    if unknown:
        raise UserError(
            f"--labels has no class for {len(unknown)} of {len(images)} images of {source}, such "
            f"as {unknown[0]}: give the file that lists them"
        )
    return [replace(file, parts=(labels[file.parts[-1]], file.parts[-1])) for file in images]


def _example(file: File, labels: Mapping[str, int]) -> Example:
    return Example("/".join(file.parts), labels.get(file.parts[0]), file.size, file.read)


def _hidden(file: File) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in file.parts)


def _is_image(file: File) -> bool:
    return os.path.splitext(file.parts[-1])[1].lower() in IMAGE_SUFFIXES


def _unwrap(images: list[File]) -> list[File]:
    """Drops folders that hold all the rest: root/ in root/cat/1.jpg, root/dog/1.jpg."""
    while True:
        tops = {file.parts[0] for file in images}
        wrapped = len(tops) == 1 and min(len(file.parts) for file in images) >= 3
        if not wrapped or tops <= SPLIT_NAMES:
            return images
        images = _inside(images)


def _inside(images: list[File]) -> list[File]:
    return [replace(file, parts=file.parts[1:]) for file in images]


def _choose_split(images: list[File], split: str, source: Path) -> list[File]:
    tops = {file.parts[0] for file in images}
    if not tops <= SPLIT_NAMES:
        return images
    if split not in tops:
        known = ", ".join(sorted(tops))
        raise UserError(f"{source} has no split {split!r}: choose --split from {known}")
    return _inside([file for file in images if file.parts[0] == split])


def _classes(images: list[File], source: Path) -> tuple[str, ...]:
    loose = [file for file in images if len(file.parts) == 1]
    if loose and len(loose) < len(images):
        raise UserError(
            f"{source} has {len(loose)} images outside of the class folders, such as "
            f"{loose[0].parts[0]}: move them into a class folder or away"
        )
    return tuple(sorted({file.parts[0] for file in images})) if not loose else ()
