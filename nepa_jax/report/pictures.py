"""The pictures that lie in a workdir, in an order that people expect."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from nepa_jax.report.workdirs import NOT_BELOW, walk

PNG = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 32 << 20  # of one page
# Curves over layers are drawn by the page itself; the rest are no pictures of a run's own.
ELSEWHERE = NOT_BELOW - {"pictures"}


@dataclass(frozen=True)
class Picture:
    """A PNG file of a workdir."""

    name: str  # its path in the workdir
    data: bytes

    @property
    def key(self) -> str:
        return hashlib.sha256(self.data).hexdigest()[:32]


def read_pictures(workdir: Path, room: int, notes: list[str]) -> list[Picture]:
    """The PNGs below a workdir, 10 after 9; those that no room is left for are named in ``notes``.

    Args:
        workdir: of the run. Links that lead out of it are not followed.
        room: bytes.
        notes: gets a line.
    """
    found, left_out = [], []
    for path in sorted(_files(workdir), key=lambda path: _natural(str(path.relative_to(workdir)))):
        try:
            data = path.read_bytes() if path.stat().st_size <= room else b""
        except OSError:
            continue
        if not data:
            left_out.append(path.name)
        elif data.startswith(PNG):
            room -= len(data)
            found.append(Picture(str(path.relative_to(workdir)), data))
    if left_out:
        first, last = left_out[0], left_out[-1]
        notes.append(
            f"{workdir}: {len(left_out)} pictures ({first} … {last}) are left out: a page holds "
            f"{MOST_BYTES >> 20} MB of them"
        )
    return found


def _files(workdir: Path) -> list[Path]:
    inside = workdir.resolve()
    paths = [place / name for place, names in walk(workdir, ELSEWHERE) for name in names]
    pngs = [path for path in paths if path.suffix.lower() == ".png" and path.is_file()]
    return [path for path in pngs if path.resolve().is_relative_to(inside)]


def _natural(text: str) -> list[tuple[int, str]]:
    """Digits sort as numbers."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]
