"""The errors that reach a user as one line, without a traceback."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nepa_jax.base.text import printable


class UserError(Exception):
    """A mistake in the user's input.

    The message is one line that names the value, the place and the remedy; several mistakes found
    at once are a line each. The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, *lines: str):
        super().__init__("\n  ".join(map(printable, lines)))


class UnavailableError(Exception):
    """Something outside this machine was not there: a host that came late, storage that is away.

    The same command may work later: one line, and exit code 1, on which launchers try again.
    """

    def __init__(self, line: str):
        super().__init__(printable(line))


class RunDiverged(Exception):
    """Too many steps in a row, or the last ones, had to be thrown away; exit code 1."""


def require_folder(path: str, option: str) -> None:
    """Raises UserError if a place to write to is a URL: it would become a folder named so, here."""
    if "://" in path:
        raise UserError(
            f"{option}={path}: is a URL, and this must be a folder; mount the bucket "
            "(gcsfuse, mountpoint-s3) and give the path below it"
        )


# What a number of the system says of the same command given again: it may work, where storage on
# other machines did not answer, or it fails again. Of any other it is not known.
_AWAY = (
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ENETDOWN),
    *(errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
)
_LASTING = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP),
)


def fails_again(error: BaseException) -> bool:
    """Whether the system would say the same again: of a name, a right, a full disk."""
    return getattr(error, "errno", None) in _LASTING


def storage_error(line: str, error: BaseException) -> UserError | UnavailableError:
    """The error that a user gets for one of storage: by whether the same command may work later."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _AWAY:
            return UnavailableError(line)
        cause = cause.__cause__ or cause.__context__
    away = any(os.strerror(code) in str(error) for code in _AWAY)
    return UnavailableError(line) if away else UserError(line)


@contextmanager
def writing(file: Path) -> Iterator[None]:
    """Around what is written to a run's workdir while it goes on.

    Raises:
        UserError: it cannot be written, such as on a full disk.
        UnavailableError: the storage is away.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(
            f"{file}: the log cannot be written ({error.strerror}); free space there, then give the "
            "same command again: it goes on from the last checkpoint",
            error,
        ) from error


def in_short(error: BaseException) -> str:
    """The cause of an error in one line; of a long one the beginning and the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    text = printable(text)
    return text if len(text) <= 180 else f"{text[:50]} … {text[-120:]}"
