"""The one exception that means: the user's input is wrong."""


class UserError(Exception):
    """A mistake in the user's input.

    The message is one line that names the value, the place and the remedy. The
    command line prints it without a traceback and exits with code 2.
    """
