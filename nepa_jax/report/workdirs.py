"""Which runs are meant: workdirs that are named, and all those below a folder."""

import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from nepa_jax.base.errors import UserError, require_folder
from nepa_jax.base.text import printable

SIGNS = ("metrics.jsonl", "run.lock")  # of a workdir, which has one of them from its start on
# What a workdir holds, and others' folders of a great many files: no runs are below.
NOT_BELOW = {"checkpoints", "profile", "tensorboard", "eval", "pictures", "node_modules"}


def is_workdir(folder: Path) -> bool:
    """Whether a run has begun there."""
    return any((folder / name).is_file() for name in SIGNS)


def find_workdirs(paths: Sequence[str]) -> dict[str, Path]:
    """The workdirs meant by these paths, by a name that tells them apart, in order.

    A path is one, or a folder with some below it.

    Raises:
        UserError: a path is no folder, or holds no run.
    """
    found = [workdir for path in paths for workdir in _at(path)]
    unique = list(dict.fromkeys(Path(os.path.abspath(workdir)) for workdir in found))
    if len(unique) == 1:
        return {printable(unique[0].name): unique[0]}
    above = os.path.commonpath([workdir.parent for workdir in unique])
    return {printable(os.path.relpath(workdir, above)): workdir for workdir in unique}


def _at(path: str) -> list[Path]:
    require_folder(path, "report")
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"{path}: is a file; give a run's workdir, or a folder with runs below it")
    if not folder.is_dir():
        raise UserError(f"{path}: there is no such folder; give the --workdir of a run")
    if is_workdir(folder):
        return [folder]
    below = sorted(_below(folder))
    if not below:
        raise UserError(
            f"{path}: no run is here or in a folder below; give the --workdir of one, which holds "
            "metrics.jsonl after its first step"
        )
    return below


def _below(folder: Path) -> Iterator[Path]:
    return (place for place, _ in walk(folder, NOT_BELOW) if is_workdir(place))


def walk(folder: Path, without: Set[str]) -> Iterator[tuple[Path, list[str]]]:
    """A folder and those below it, each with the names of its files, in order.

    Hidden ones and those of certain names are left out, and links, which may lead in circles.
    """
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in without and not f.startswith("."))
        yield Path(place), sorted(files)
