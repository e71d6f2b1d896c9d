"""The members of a tar by their headers, which must be sound up to the mark of its end."""

import os
import posixpath
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from nepa_jax.base.errors import UserError
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.members import Member

BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
MAX_DEPTH = 8

SPECIAL = "neither files nor folders nor links"
UNREADABLE_TARS = "tars inside of the archive that are none, or nested too deep"


class Window:
    """`size` bytes of an open file from `start` on, read like a file of their own."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self.file, self.start, self.size = file, start, size
        self._at = 0

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> None:
        self._at = at

    def read(self, number: int) -> bytes:
        data = self.read_at(self._at, number)
        self._at += len(data)
        return data

    def read_at(self, at: int, number: int) -> bytes:
        """Up to `number` bytes from `at` on; fewer at the end. Safe to call from threads."""
        number = min(number, self.size - at)
        return os.pread(self.file.fileno(), number, self.start + at) if number > 0 else b""

    def inner(self, start: int, size: int) -> "Window":
        return Window(self.file, self.start + start, size)


def is_tar(window: Window) -> bool:
    """Whether it begins with the header of a member, or with the mark of the end."""
    block = window.read_at(0, BLOCK)
    return len(block) == BLOCK and (not any(block) or _is_header(block))


def tar_members(window: Window, name: str, left_out: LeftOut, depth: int = 0) -> Iterator[Member]:
    """The files and links of a tar, and of the tars in it, whose names are folders:
    ImageNet's n01440764.tar. Members are read at their offsets: TarFile.extractfile is not safe
    to use from threads.

    Raises UserError if a header is damaged or the tar, which is called `name`, is cut short.
    """
    for member in _headers(window, name):
        inner = window.inner(member.offset_data, member.size)
        if member.isreg() and member.name.endswith(".tar"):
            if depth == MAX_DEPTH or not is_tar(inner):
                left_out.add(UNREADABLE_TARS, member.name)
                continue
            folder = member.name.removesuffix(".tar")
            for each in tar_members(inner, f"{name}/{member.name}", left_out, depth + 1):
                yield _below(folder, each)
        elif member.isreg() and not member.issparse():
            yield Member(member.name, member.size, partial(inner.read_at, 0, member.size))
        elif member.islnk():
            yield Member(member.name, target=member.linkname)
        elif member.issym():
            target = posixpath.join(posixpath.dirname(member.name), member.linkname)
            yield Member(member.name, target=target)
        elif not member.isdir():
            left_out.add(SPECIAL, member.name)


def _below(folder: str, member: Member) -> Member:
    target = None if member.target is None else f"{folder}/{member.target}"
    return Member(f"{folder}/{member.name}", member.size, member.read, target)


def _headers(window: Window, name: str) -> Iterator[tarfile.TarInfo]:
    """All headers, also those of tars that were appended by `cat`."""
    start, last = 0, None
    while start is not None:
        window.seek(start)
        try:
            with tarfile.open(fileobj=window, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    if archive.offset <= start:  # a size below zero would lead back
                        raise tarfile.ReadError("a size below zero")
                    start, last = archive.offset, member.name
                    archive.members.clear()  # a million of them take a gigabyte
                    yield member
            start = _after_end(window, archive.offset)
        except OSError:
            raise
        except Exception as error:  # tarfile raises many kinds for a damaged header
            raise UserError(_damage(window, name, start, last, error)) from error


def _after_end(window: Window, at: int) -> int | None:
    """Where the next tar begins, behind the mark of the end that is at `at`; None: nowhere.

    Raises TarError if there is no such mark, or what follows is no tar.
    """
    block = window.read_at(at, BLOCK)
    if len(block) < BLOCK:
        raise tarfile.ReadError("no mark of its end")
    if any(block):
        raise tarfile.ReadError("a bad header")
    while chunk := window.read_at(at, CHUNK):
        if any(chunk):
            break
        at += len(chunk)
    else:
        return None
    at += (len(chunk) - len(chunk.lstrip(b"\0"))) // BLOCK * BLOCK
    if not _is_header(window.read_at(at, BLOCK)):
        raise tarfile.ReadError(f"something else behind its end, at byte {at:,}")
    return at


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


def _damage(window: Window, name: str, at: int, last: str | None, error: Exception) -> str:
    behind = f"behind {last}" if last else "at its beginning"
    return (
        f"{name} is cut short or damaged {behind}, at byte {at:,} of {window.size:,} ({error}): "
        "fetch it again, or unpack what there is with `tar x` and give the folder"
    )
