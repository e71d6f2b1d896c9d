"""Folders of this machine that no other user can prepare, read or change."""

import os
import stat
from pathlib import Path

from nepa_jax.base.errors import UserError


def private_folder(*names: str) -> Path:
    """The folder NAMES in the user's cache for this package, made if it is not there.

    The cache is ``$XDG_CACHE_HOME/nepa_jax``, or ``~/.cache/nepa_jax``. A folder with a name that
    others can guess in a place where others can write, such as ``/tmp``, may be theirs already.

    Raises:
        UserError: it cannot be made, is a link, or belongs or is open to others.
    """
    folder = _cache()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(folder)
        os.chmod(folder, 0o700)  # others may have been let in by a umask
        for name in names:
            folder = folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
            _check_owner(folder)
            _check_closed(folder)
    except OSError as error:
        raise UserError(
            f"cannot use the folder {folder} ({error.strerror}): set XDG_CACHE_HOME to one that "
            "you can write to"
        ) from error
    return folder


def open_private(file: Path) -> int:
    """Opens a file to write, as a number for the system, without emptying it or following a link.

    Raises OSError if it is a link, or cannot be opened.
    """
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def _cache() -> Path:
    wanted = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(wanted):  # others are to be ignored, as the standard has it
        return Path(wanted, "nepa_jax")
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise UserError("you have no home folder: set XDG_CACHE_HOME to a folder that is yours")
    return Path(home, ".cache", "nepa_jax")


def _check_owner(folder: Path) -> None:
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise UserError(
            f"{folder} is a link, or belongs to another user: remove it, or set XDG_CACHE_HOME to "
            "a folder that is yours"
        )


def _check_closed(folder: Path) -> None:
    if os.lstat(folder).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"{folder} can be written by other users: remove it, and give the command again"
        )
