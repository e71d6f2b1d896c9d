"""The errors that reach a user as one line, without a traceback."""


class UserError(Exception):
    """A mistake in the user's input.

    The message is one line that names the value, the place and the remedy. The
    command line prints it without a traceback and exits with code 2.
    """


class RunDiverged(Exception):
    """Too many steps in a row had a loss or gradient that is not finite; exit code 1."""


def require_folder(path: str, option: str) -> None:
    """Raises UserError if a place to write to is a URL: it would become a folder named so, here."""
    if "://" in path:
        raise UserError(
            f"{option}={path}: is a URL, and this must be a folder; mount the bucket "
            "(gcsfuse, mountpoint-s3) and give the path below it"
        )
