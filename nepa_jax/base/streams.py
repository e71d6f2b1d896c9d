"""Standard streams that outlive their reader: a run is not lost because a pipe or terminal went away."""

import errno
import io
import os
import sys
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # a pipe or a terminal without a reader; closed


class Lasting(io.TextIOWrapper):
    """Text to a stream; when that fails, the rest goes nowhere and ``lost`` says why.

    A reader that went away, as in ``| head``, is no loss. Characters that the stream's encoding
    does not have are written as escapes.
    """

    lost: str = ""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if error.errno not in GONE:
            self.lost = error.strerror or str(error)


def make_standard_streams_last() -> None:
    """Opens those of the three that are closed, and puts :class:`Lasting` in place of the outputs."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            _open_nowhere(number)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    sys.stdout = _lasting(sys.stdout)
    sys.stderr = sys.__stderr__ = _lasting(sys.stderr)


def _open_nowhere(number: int) -> None:
    """Without this the next file that is opened would get the number, and our output."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _lasting(stream: TextIO) -> Any:
    return Lasting(
        stream.detach(),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def lost_output() -> str:
    """Why not all of the standard output was written; "" if it was, or nobody was there to read it."""
    sys.stdout.flush()
    return getattr(sys.stdout, "lost", "")
