"""The files of a folder, zip or tar, each of which can be read at any time from any thread."""

import bz2
import gzip
import lzma
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from nepa_jax.errors import UserError

DECOMPRESSORS = {".gz": gzip.open, ".tgz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True)
class File:
    """One file of a source: its path as parts, its size in bytes, and how to read it.

    `read` may be called from any thread, in any order.
    """

    parts: tuple[str, ...]
    size: int
    read: Callable[[], bytes]


def open_files(path: Path, scratch: Path) -> AbstractContextManager[list[File]]:
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
    with open(path, "rb") as file:
        try:
            members = _members(file)
        except tarfile.TarError as error:
            raise UserError(f"{path} is neither a folder, a zip nor a tar ({error})") from error
        yield [
            File(parts, m.size, partial(os.pread, file.fileno(), m.size, m.offset_data))
            for parts, m in members
        ]


def _members(file: BinaryIO) -> list[tuple[tuple[str, ...], tarfile.TarInfo]]:
    """The files of a tar. A tar inside of it, like ImageNet's n01440764.tar, counts as a folder."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        members = [(_parts(member.name), member) for member in archive if member.isreg()]
    found = []
    for parts, member in members:
        if not parts[-1].endswith(".tar"):
            found.append((parts, member))
            continue
        file.seek(member.offset_data)  # from there on it reads like a tar of its own
        folder = (*parts[:-1], parts[-1].removesuffix(".tar"))
        found.extend(((*folder, *inner), each) for inner, each in _members(file))
    return found


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


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))
