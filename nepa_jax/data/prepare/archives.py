"""The files of a folder, zip or tar, each of which can be read at any time from any thread."""

import bz2
import gzip
import lzma
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from posixpath import dirname, join
from typing import BinaryIO

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import meter, progress
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.members import DEAD_LINKS, File, Member, files_of
from nepa_jax.data.prepare.tars import SPECIAL, Window, is_tar, tar_members

__all__ = ["File", "open_files"]

MIB = 1 << 20
MAX_RATIO = 100  # of the unpacked size of a tar to the packed one: images hardly shrink
ALWAYS_UNPACKED = 64 * MIB
KEPT_FREE = 256 * MIB  # of a disk on which a tar is unpacked
MAX_TARGET = 4096  # bytes of a link

DECOMPRESSORS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
OTHER_ARCHIVES = {
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\x04\x22\x4d\x18": "unlz4",
    b"\x1f\x9d": "uncompress",
    b"Rar!": "unrar x",
    b"7z\xbc\xaf": "7z x",
}
# A method that unpacks in bounded steps reads a member at once; the others a little at a time.
ZIP_STEPS = {zipfile.ZIP_STORED: None, zipfile.ZIP_DEFLATED: None}
ZIP_STEPS |= {zipfile.ZIP_BZIP2: 4096, zipfile.ZIP_LZMA: 4096}

CLOSED_FOLDERS = "folders that cannot be listed"
CLOSED_FILES = "files that cannot be looked at"
FOLDERS_AGAIN = "links to folders that are read already"
ENCRYPTED = "encrypted files (unpack the zip with its password and give the folder)"
OTHER_METHODS = "files of a zip packed by a method that is not read (unpack it, give the folder)"


@contextmanager
def open_files(path: Path, scratch: Path, left_out: LeftOut | None = None) -> Iterator[list[File]]:
    """Lists every file of a folder, .zip or .tar[.gz|.bz2|.xz], readable until the exit.

    `scratch` is a folder for temporary files. `left_out` is told what is there and cannot be
    read. Raises UserError if `path` is none of these, damaged or cut short.
    """
    told = LeftOut() if left_out is None else left_out
    with _open_members(path, scratch, told) as members:
        yield files_of(progress(members, None, "listing the source"), told)


@contextmanager
def _open_members(path: Path, scratch: Path, left_out: LeftOut) -> Iterator[Iterator[Member]]:
    if path.is_dir():
        yield _folder_members(str(path), left_out)
        return
    if not path.is_file():
        raise UserError(f"{path} is neither a file nor a folder: give a folder or an archive")
    with open(path, "rb") as file:
        start = file.read(8)
        whole = Window(file, 0, path.stat().st_size)
        unpack = next((DECOMPRESSORS[key] for key in DECOMPRESSORS if start.startswith(key)), None)
        if is_tar(whole):  # asked first: its last member may be a zip, which a zip ends with
            yield tar_members(whole, str(path), left_out)
        elif unpack:
            with _unpacked(path, unpack, scratch / "source.tar") as plain:
                yield tar_members(plain, str(path), left_out)
        elif start.startswith(b"PK") or zipfile.is_zipfile(file):
            with _open_zip(path) as archive:
                yield _zip_members(archive, left_out)
        else:
            raise UserError(_no_archive(path, start))


def _no_archive(path: Path, start: bytes) -> str:
    for magic, command in OTHER_ARCHIVES.items():
        if start.startswith(magic):
            return f"{path} is packed in a way that is not read: unpack it (`{command}`) first"
    what = "neither a folder, a zip nor a tar (plain or .gz, .bz2, .xz)" if start else "empty"
    return f"{path} is {what}: give one of these, or fetch it again"


def _folder_members(root: str, left_out: LeftOut) -> Iterator[Member]:
    """Each folder once. Links to folders come last: what has a name without them keeps it."""
    seen: set[tuple[int, int]] = set()
    folders, links = [""], []
    while folders or links:
        folder = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(join(root, folder))
            if (status.st_dev, status.st_ino) in seen:
                left_out.add(FOLDERS_AGAIN, folder)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(join(root, folder)) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError:
            left_out.add(CLOSED_FOLDERS, folder or root)
            continue
        for entry in entries:
            name = join(folder, entry.name)
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(name)
                elif stat.S_ISREG((status := entry.stat()).st_mode):
                    yield Member(name, status.st_size, Path(entry.path).read_bytes)
                else:
                    left_out.add(SPECIAL, name)
            except OSError:
                left_out.add(DEAD_LINKS if entry.is_symlink() else CLOSED_FILES, name)


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged directory
        raise UserError(f"{path} is cut short or damaged ({error}): fetch it again") from error
    with archive:
        yield archive


def _zip_members(archive: zipfile.ZipFile, left_out: LeftOut) -> Iterator[Member]:
    for info in archive.infolist():
        name = _zip_name(info)
        if name.endswith("/"):
            continue
        if info.flag_bits & 1:
            left_out.add(ENCRYPTED, name)
        elif info.compress_type not in ZIP_STEPS:
            left_out.add(OTHER_METHODS, name)
        elif not stat.S_ISLNK(info.external_attr >> 16):
            yield Member(name, info.file_size, partial(_read, archive, info))
        elif (target := _link_target(archive, info)) is not None:
            yield Member(name, target=join(dirname(name), target))
        else:
            left_out.add(DEAD_LINKS, name)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """With slashes, which programs for Windows forget, in UTF-8, which macOS does not declare."""
    name = info.filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):  # of a machine with another code page: as it is
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _link_target(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> str | None:
    if info.file_size > MAX_TARGET:
        return None
    try:
        return os.fsdecode(_read(archive, info))
    except Exception:  # whatever is wrong with a member
        return None


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """The contents of a member, which are never more than its directory says."""
    step = ZIP_STEPS[info.compress_type] or info.file_size
    with archive.open(info) as member:
        return b"".join(iter(lambda: member.read(step), b""))


@contextmanager
def _unpacked(path: Path, unpack: Callable[[Path], BinaryIO], plain: Path) -> Iterator[Window]:
    """The contents of a compressed file, in the file `plain`.

    Records are written in another order than the tar's, and a compressed stream cannot be read
    at an offset: so the compression of the whole is undone once.
    """
    limit = max(ALWAYS_UNPACKED, MAX_RATIO * path.stat().st_size)
    with open(plain, "w+b") as file:
        try:
            with unpack(path) as packed, meter(None, "unpacking the source, MiB") as advance:
                while chunk := packed.read(MIB):
                    file.write(chunk)
                    _check_room(path, file.tell(), limit, plain)
                    advance(1)
        except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
            if getattr(error, "errno", None):  # of the system, such as a full disk
                raise
            raise UserError(f"{path} is cut short or damaged ({error}): fetch it again") from error
        file.flush()
        yield Window(file, 0, file.tell())


def _check_room(path: Path, size: int, limit: int, plain: Path) -> None:
    if size > limit:
        raise UserError(
            f"{path} unpacks to more than {MAX_RATIO} times its size, as images do not: "
            "unpack it by yourself if you trust it, and give the folder"
        )
    if (free := shutil.disk_usage(plain.parent).free) < KEPT_FREE:
        raise UserError(
            f"unpacking {path} leaves {free // MIB} MiB free in {plain.parent}: "
            "free space there, or unpack it elsewhere and give the folder"
        )
