"""All hosts of a run meet here before jax starts.

A host that jax waits for in vain ends the whole process from C++. So the hosts meet first, on the
port that jax will use next: an absent, doubled or differing one is then an error that names it.
"""

import json
import socket
import time
from dataclasses import dataclass

from nepa_jax.errors import UserError

NAME_TIMEOUT_S = 30.0  # a pod's own name may become known later than its neighbours start
HELLO_TIMEOUT_S = 5.0  # a stranger that knocks at the port and says nothing
RETRY_S = 0.5
LONGEST_LINE = 4096  # bytes


@dataclass(frozen=True)
class Place:
    """A process of a run: where the hosts meet, how many they are, and which one this is."""

    host: str  # of process 0
    port: int
    processes: int
    process: int

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Guest:
    """Another process, as process 0 sees it."""

    process: int
    processes: int
    name: str  # of its machine
    line: socket.socket


def meet(place: Place, timeout_s: float) -> None:
    """Returns on all processes when all are there.

    Raises:
        UserError: one is missing after ``timeout_s`` seconds, started twice or with another count;
            the port is taken; the host's name is unknown.
    """
    resolve(place)
    deadline = time.monotonic() + timeout_s
    if place.process == 0:
        receive_all(place, deadline, timeout_s)
    else:
        join(place, deadline, timeout_s)


def resolve(place: Place) -> None:
    """Waits a little until the coordinator's name is known.

    Raises:
        UserError: it stays unknown.
    """
    deadline = time.monotonic() + NAME_TIMEOUT_S
    while True:
        try:
            socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
            return
        except (socket.gaierror, UnicodeError):
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator={place.address}: the host {place.host!r} is unknown here; give "
                    "the name or address of process 0's machine as the other hosts see it"
                ) from None
        time.sleep(RETRY_S)


# Process 0


def receive_all(place: Place, deadline: float, timeout_s: float) -> None:
    """Waits for the other processes, and tells each that all are there, or what is wrong."""
    guests: dict[int, Guest] = {}
    with listen(place) as listener:
        try:
            while len(guests) < place.processes - 1:
                admit(next_guest(listener, deadline), guests, place)
        except TimeoutError:
            error = missing(place, guests, timeout_s)
        except UserError as mistake:
            error = str(mistake)
        else:
            error = ""
        for guest in guests.values():
            dismiss(guest, error)
    if error:
        raise UserError(error)


def listen(place: Place) -> socket.socket:
    """A socket at the coordinator's port, on all addresses of this machine.

    Raises:
        UserError: the port is taken or forbidden.
    """
    try:
        return socket.create_server(("", place.port), backlog=place.processes)
    except OSError as error:
        raise UserError(
            f"--coordinator={place.address}: port {place.port} cannot be used on this machine "
            f"({error.strerror}); end what uses it, or give another port to all processes"
        ) from None


def next_guest(listener: socket.socket, deadline: float) -> Guest:
    """The next process that joins; anything else that connects is let go.

    Raises:
        TimeoutError: none came before the deadline.
    """
    while True:
        listener.settimeout(max(deadline - time.monotonic(), 0.001))
        line, _ = listener.accept()
        line.settimeout(HELLO_TIMEOUT_S)
        try:
            hello = json.loads(read_line(line))
            return Guest(int(hello["process"]), int(hello["processes"]), str(hello["name"]), line)
        except (OSError, ValueError, KeyError, TypeError):
            line.close()


def admit(guest: Guest, guests: dict[int, Guest], place: Place) -> None:
    """Notes who came, and forgets who left again.

    Raises:
        UserError: it does not belong to this run, or is there twice.
    """
    for process in [process for process, other in guests.items() if has_left(other)]:
        guests.pop(process).line.close()
    former = guests.get(guest.process)
    if former is not None:
        error = (
            f"--process={guest.process} was started twice, on {former.name} and {guest.name}; "
            f"number the processes from 0 to {place.processes - 1}"
        )
        dismiss(guest, error)
        raise UserError(error)
    guests[guest.process] = guest
    if guest.processes != place.processes:
        raise UserError(
            f"process {guest.process} ({guest.name}) was started with --processes="
            f"{guest.processes}, process 0 with {place.processes}; give all the same"
        )


def has_left(guest: Guest) -> bool:
    """Whether the other end was closed."""
    guest.line.setblocking(False)
    try:
        return guest.line.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def dismiss(guest: Guest, error: str) -> None:
    """Sends the outcome; then the guest hangs up first, which leaves the port free for jax."""
    try:
        guest.line.settimeout(HELLO_TIMEOUT_S)
        guest.line.sendall(json.dumps({"error": error}).encode() + b"\n")
        guest.line.recv(1)
    except OSError:
        pass  # it is gone: jax will notice
    guest.line.close()


def missing(place: Place, guests: dict[int, Guest], timeout_s: float) -> str:
    """Says which processes did not arrive, and what to look at."""
    absent = [str(i) for i in range(1, place.processes) if i not in guests]
    shown = ", ".join(absent[:8]) + (f" and {len(absent) - 8} more" if len(absent) > 8 else "")
    return (
        f"--coordinator={place.address}: {len(guests) + 1} of {place.processes} processes arrived "
        f"within {timeout_s:.0f} s; missing: {shown}. See in their logs whether they run, and "
        f"whether they reach {place.host} at port {place.port}"
    )


# The others


def join(place: Place, deadline: float, timeout_s: float) -> None:
    """Tells process 0 that this one is there, and waits until all are.

    Raises:
        UserError: process 0 does not answer in time, or says what is wrong.
    """
    last = "no answer"
    while time.monotonic() < deadline:
        try:
            error = greet(place, timeout_s)
            break
        except OSError as problem:  # not up yet, or restarted
            last = problem.strerror or str(problem) or last
            time.sleep(RETRY_S)
        except ValueError:
            last = "something else answers there"
            time.sleep(RETRY_S)
    else:
        raise UserError(
            f"--coordinator={place.address}: process 0 did not answer within {timeout_s:.0f} s "
            f"({last}); start it on {place.host} with the same --coordinator and --processes="
            f"{place.processes}, and let port {place.port} through the firewall"
        )
    if error:
        raise UserError(error)


def greet(place: Place, timeout_s: float) -> str:
    """What process 0 answers: empty, or an error."""
    hello = {"process": place.process, "processes": place.processes, "name": socket.gethostname()}
    with socket.create_connection((place.host, place.port), timeout=HELLO_TIMEOUT_S) as line:
        line.sendall(json.dumps(hello).encode() + b"\n")
        line.settimeout(timeout_s + HELLO_TIMEOUT_S)  # process 0 may have begun to wait later
        return str(json.loads(read_line(line))["error"])


def read_line(line: socket.socket) -> bytes:
    """The bytes up to a line's end.

    Raises:
        ConnectionError: the other end hung up before that.
        ValueError: the line is too long.
    """
    text = b""
    while not text.endswith(b"\n"):
        if len(text) > LONGEST_LINE:
            raise ValueError("line too long")
        byte = line.recv(1)
        if not byte:
            raise ConnectionError("the connection was closed")
        text += byte
    return text
