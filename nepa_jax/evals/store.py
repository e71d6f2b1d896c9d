"""Features on disk: kept under a key of all that decides them, the oldest dropped above a limit.

    ~/.cache/nepa_jax/features/KEY/rows.npz        labels and numbers of the images
                                   mean-07.npy     float32 [n, D], or [n, N, D] of all tokens

Every file appears whole or not at all, so that what a killed evaluation leaves is of use.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.private import private_folder
from nepa_jax.base.progress import warn
from nepa_jax.hosts.agree import say

LIMIT = "NEPA_JAX_FEATURES_GIB"  # environment: of all features together
DEFAULT_GIB = 20.0
UNFINISHED = ".tmp-"
ABANDONED_S = 24 * 3600  # after which nobody writes to an unfinished folder any more
ROWS = "rows.npz"


def limit_bytes() -> int:
    """Raises UserError if the environment gives no number for it."""
    text = os.environ.get(LIMIT, "") or str(DEFAULT_GIB)
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not 0 < gib < 2**30:
        raise UserError(f"{LIMIT}={text}: give the GiB that stored features may take; try 20")
    return int(gib * 2**30)


class Entry:
    """The features of one encoder on one split."""

    def __init__(self, key: str) -> None:
        self.folder = private_folder("features") / key

    def read(self, names: list[str]) -> dict[str, np.ndarray]:
        """Those of the named arrays that are here, memory-mapped; all of the same number of rows."""
        count = len(self.rows().get("index", ()))
        found = {}
        for name in names:
            try:
                array = np.load(self.folder / f"{name}.npy", mmap_mode="r")
            except (OSError, ValueError):  # not there, or damaged: made anew
                continue
            if len(array) == count:
                found[name] = array
        if found:
            os.utime(self.folder)
        return found

    def rows(self) -> dict[str, np.ndarray]:
        """``labels`` and ``index``, int32 [n]; {} if there are none."""
        try:
            with np.load(self.folder / ROWS) as arrays:
                return dict(arrays)
        except (OSError, ValueError, KeyError):
            return {}

    @contextmanager
    def writing(self, names: list[str], wanted: int) -> Iterator["Writer"]:
        """Takes rows, and keeps them when all are in.

        Args:
            names: of the arrays.
            wanted: bytes that they will take.

        Raises:
            UserError: they are more than the limit, or the disk is full.
        """
        make_room(self.folder, wanted)
        unfinished = self.folder.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
        try:
            unfinished.mkdir(mode=0o700)
            with ExitStack() as files:
                yield Writer(unfinished, names, files)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            for file in sorted(unfinished.iterdir(), key=lambda file: file.name != ROWS):
                file.replace(self.folder / file.name)
        except OSError as error:
            raise UserError(
                f"{self.folder.parent}: features cannot be written ({error.strerror}); free space "
                "there, or set XDG_CACHE_HOME to a larger disk"
            ) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


class Writer:
    """Files of arrays that grow row by row."""

    def __init__(self, folder: Path, names: list[str], files: ExitStack) -> None:
        self._arrays = {
            name: files.enter_context(Growing(folder / f"{name}.npy")) for name in names
        }
        self._rows: dict[str, list[np.ndarray]] = {"labels": [], "index": []}
        files.callback(self._write_rows, folder)

    def add(self, labels: np.ndarray, index: np.ndarray, arrays: Mapping[str, np.ndarray]) -> None:
        """Rows of all arrays, with the images' labels and numbers."""
        self._rows["labels"].append(labels)
        self._rows["index"].append(index)
        for name, rows in arrays.items():
            self._arrays[name].add(rows)

    def _write_rows(self, folder: Path) -> None:
        if self._rows["labels"]:
            np.savez(folder / ROWS, **{k: np.concatenate(v) for k, v in self._rows.items()})


class Growing:
    """One .npy file to whose first axis rows are added."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._shape: tuple[int, ...] = ()

    def __enter__(self) -> "Growing":
        return self

    def add(self, rows: np.ndarray) -> None:
        """float32 [b, …]."""
        if not self._shape:
            self._shape = (0, *rows.shape[1:])
            self._head()
        self._shape = (self._shape[0] + len(rows), *self._shape[1:])
        self._file.write(np.ascontiguousarray(rows, np.float32).data)

    def __exit__(self, *_: object) -> None:
        with self._file:
            if self._shape:
                self._file.seek(0)
                self._head()  # NumPy leaves room for the number of rows

    def _head(self) -> None:
        described = {"descr": "<f4", "fortran_order": False, "shape": self._shape}
        np.lib.format.write_array_header_1_0(self._file, described)


def make_room(place: Path, wanted: int) -> None:
    """Drops the entries that were used longest ago until ``wanted`` bytes more are within the limit.

    What a process has open stays readable for it.

    Raises:
        UserError: they are more than the limit by themselves.
    """
    limit = limit_bytes()
    if wanted > limit:
        raise UserError(
            f"these features take {wanted / 2**30:,.1f} GiB, and {LIMIT} allows {limit / 2**30:g}: "
            f"choose one --layer or fewer images, or set {LIMIT}={int(wanted / 2**30 * 1.1) + 1}"
        )
    entries = [folder for folder in place.parent.iterdir() if folder.is_dir()]
    for folder in entries:
        if folder.name.startswith(UNFINISHED) and _age_s(folder) > ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)
    sizes = {folder: _size(folder) for folder in entries}
    dropped = 0
    for folder in sorted(entries, key=_age_s, reverse=True):
        if sum(sizes.values()) + wanted <= limit:
            break
        if folder != place and not folder.name.startswith(UNFINISHED):
            shutil.rmtree(folder, ignore_errors=True)
            dropped += sizes.pop(folder)
    if dropped:
        say(f"features: dropped {dropped / 2**30:,.2f} GiB used longest ago ({LIMIT})")


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:  # another process drops it
        warn(f"{folder}: cannot be looked at")
        return 0
