"""The errors that reach a user as one line, without a traceback."""


class UserError(Exception):
    """A mistake in the user's input.

    The message is one line that names the value, the place and the remedy. The
    command line prints it without a traceback and exits with code 2.
    """


class RunDiverged(Exception):
    """Too many steps in a row had a loss or gradient that is not finite; exit code 1."""
