"""The files of a folder, zip or tar, and the split and classes that their paths spell."""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nepa_jax.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
)
SPLIT_NAMES = frozenset(
    ("train", "training", "val", "valid", "validation", "test", "testing", "unlabeled")
)
DECOMPRESSORS = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True)
class File:
    """One file of a source: its path as parts, its size in bytes, and how to read it.

    `read` may be called from any thread, in any order.
    """

    parts: tuple[str, ...]
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Listing:
    """The images of one split. `classes` is empty for a flat folder."""

    images: Sequence[File]
    classes: tuple[str, ...]
    num_ignored: int


def open_source(path: Path, scratch: Path) -> AbstractContextManager[list[File]]:
    """Lists every file of a folder, .zip or .tar[.gz|.bz2|.xz], readable until the exit.

    `scratch` is a folder for temporary files. Raises UserError if the archive cannot be opened.
    """
    if path.is_dir():
        return _open_folder(path)
    if zipfile.is_zipfile(path):
        return _open_zip(path)
    if path.suffix in DECOMPRESSORS:
        return _open_compressed_tar(path, scratch)
    return _open_tar(path)


@contextmanager
def _open_folder(root: Path) -> Iterator[list[File]]:
    files = []
    for folder, _, names in os.walk(root, followlinks=True):
        parts = Path(folder).relative_to(root).parts
        for name in names:
            path = Path(folder, name)
            if path.is_file():  # a link to nowhere is not
                files.append(File((*parts, name), path.stat().st_size, path.read_bytes))
    yield files


@contextmanager
def _open_zip(path: Path) -> Iterator[list[File]]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again") from error
    with archive:
        yield [
            File(_parts(info.filename), info.file_size, partial(archive.read, info))
            for info in archive.infolist()
            if not info.is_dir()
        ]


@contextmanager
def _open_tar(path: Path) -> Iterator[list[File]]:
    # Members are read at their offsets: TarFile.extractfile is not safe to use from threads.
    try:
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive if member.isreg()]
    except tarfile.TarError as error:
        raise UserError(f"{path} is neither a folder, a zip nor a tar ({error})") from error
    with open(path, "rb") as file:
        yield [
            File(_parts(m.name), m.size, partial(os.pread, file.fileno(), m.size, m.offset_data))
            for m in members
        ]


@contextmanager
def _open_compressed_tar(path: Path, scratch: Path) -> Iterator[list[File]]:
    # Records are written in another order than the tar's, and a compressed stream cannot be
    # read at an offset: undo the compression of the whole once.
    plain = scratch / "source.tar"
    try:
        with DECOMPRESSORS[path.suffix](path) as packed, open(plain, "wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise UserError(f"{path} is damaged ({error}): fetch it again") from error
    with _open_tar(plain) as files:
        yield files
    plain.unlink()


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))


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
    return Listing(images, _classes(images, source), num_ignored)


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
    return [File(file.parts[1:], file.size, file.read) for file in images]


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
