"""The errors that reach a user as one line, without a traceback."""

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


def in_short(error: BaseException) -> str:
    """The cause of an error in one line; of a long one the beginning and the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    text = printable(text)
    return text if len(text) <= 180 else f"{text[:50]} … {text[-120:]}"
