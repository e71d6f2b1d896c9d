"""What hosts say to each other before jax starts: a line of JSON each way, with the mark of the run."""

import hmac
import json
import socket
import time
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, TypeVar

from nepa_jax.base.text import parse_json
from nepa_jax.hosts.place import Place

LONGEST_LINE = 16_384  # bytes
LONGEST_NAME = 64  # characters of a machine's name that are shown

W = TypeVar("W", bound="Hello | Answer")


@dataclass(frozen=True)
class Hello:
    """What a process says of itself when it connects."""

    otherwise: ClassVar = "it does not say its run, its number, how many there are and its name"

    mark: str  # of its run
    process: int
    processes: int
    name: str  # of its machine

    @property
    def machine(self) -> str:
        return self.name[:LONGEST_NAME]


@dataclass(frozen=True)
class Answer:
    """What process 0 tells each of the others when all have come, or at the deadline."""

    otherwise: ClassVar = "something else is there"

    mark: str
    code: int  # 0: all are there; else the exit code, 1 if the same may work later, 2 if not
    error: str


def mark(place: Place, role: str) -> str:
    """Shows that one belongs to the run, without saying its token.

    What process 0 answers does not serve for a hello: a stranger could send it back.
    """
    return hmac.new(encoded(place.token), role.encode(), "sha256").hexdigest()


def same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(encoded(given), encoded(wanted))


def encoded(text: str) -> bytes:
    """Also of what is no Unicode text: paths and JSON may hold halves of a pair."""
    return text.encode("utf-8", "surrogatepass")


def line_of(words: Hello | Answer) -> bytes:
    """The words as they are sent."""
    return json.dumps(asdict(words)).encode() + b"\n"


def read(kind: type[W], line: bytes) -> W:
    """The words in a line.

    Raises:
        ValueError: it holds no words of this kind.
    """
    if not line:
        raise ValueError("it hung up")
    said = parse_json(line, dict)
    parts = fields(kind)
    values = [said.get(part.name) for part in parts]
    if [type(value) for value in values] != [part.type for part in parts]:
        raise ValueError(kind.otherwise)
    return kind(*values)


def read_line(line: socket.socket, deadline: float) -> bytes:
    """The bytes up to a line's end.

    Raises:
        OSError: the other end hung up before that, or was not ready by the deadline.
        ValueError: the line is too long.
    """
    text = b""
    while not text.endswith(b"\n"):
        if len(text) > LONGEST_LINE:
            raise ValueError("what it says is too long")
        line.settimeout(max(deadline - time.monotonic(), 0.001))
        part = line.recv(LONGEST_LINE)
        if not part:
            raise ConnectionError("the connection was closed")
        text += part
    return text
