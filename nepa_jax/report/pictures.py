"""The pictures that lie in a workdir, in an order that people expect."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from nepa_jax.report.workdirs import NOT_BELOW, walk

PNG = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 32 << 20  # of one page
ELSEWHERE = NOT_BELOW - {"pictures", "eval"}  # what lies there is no picture of a run's own


@dataclass(frozen=True)
class Picture:
    """A PNG file of a workdir."""

    name: str  # its path in the workdir
    data: bytes

    @property
    def key(self) -> str:
        return hashlib.sha256(self.data).hexdigest()[:32]


def read_pictures(workdir: Path, room: int, notes: list[str]) -> list[Picture]:
    """The PNGs below a workdir, 10 after 9; of too many every second, fourth … of them, the last among them.

    Args:
        workdir: of the run. Links that lead out of it are not followed.
        room: bytes.
        notes: gets a line.
    """
    paths = sorted(_files(workdir), key=lambda path: _natural(str(path.relative_to(workdir))))
    sizes = {path: path.stat().st_size for path in paths}
    kept = paths
    while sum(sizes[path] for path in kept) > room:
        kept = kept[::-1][::2][::-1] if len(kept) > 1 else []
    if len(kept) < len(paths):
        notes.append(
            f"{workdir}: {len(paths) - len(kept):,} of {len(paths):,} pictures are left out: a page "
            f"holds {MOST_BYTES >> 20} MB of them"
        )
    return [Picture(str(path.relative_to(workdir)), _bytes(path)) for path in kept]


def _bytes(path: Path, count: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:  # it has gone since
        return b""


def _files(workdir: Path) -> list[Path]:
    inside = workdir.resolve()
    paths = [place / name for place, names in walk(workdir, ELSEWHERE) for name in names]
    named = [path for path in paths if path.suffix.lower() == ".png" and path.is_file()]
    within = [path for path in named if path.resolve().is_relative_to(inside)]
    return [path for path in within if _bytes(path, len(PNG)) == PNG and not _is_drawn(path)]


def _is_drawn(path: Path) -> bool:
    """Whether it shows the curves over layers of a report, which the page draws itself."""
    reported = path.name == "card.png" or path.with_suffix(".json").is_file()
    return path.parent.name == "eval" and reported


def _natural(text: str) -> list[tuple[int, str]]:
    """Digits sort as numbers."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]
