"""All hosts of a run meet here before jax starts.

A host that jax waits for in vain ends the whole process from C++. So the hosts meet first, on the
port that jax will use next: an absent, doubled or differing one is then an error that names it.

Each host says which run it belongs to. What else connects is ignored, and told; nothing that it
sends ends the run or keeps the others waiting. Nothing is encrypted: this is for private networks.
"""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.base.progress import warn
from nepa_jax.hosts.place import RETRY_S, Place, own_address, resolve
from nepa_jax.hosts.words import LONGEST_LINE, Answer, Hello, line_of, mark, read, read_line, same

HELLO_TIMEOUT_S = 5.0  # for all that one connection has to say
MOST_UNHEARD = 64  # connections that have not said yet that they belong here
MOST_TOLD = 10  # lines about strangers


def meet(place: Place, timeout_s: float) -> None:
    """Returns on all processes when all are there.

    Raises:
        UnavailableError: one is missing after ``timeout_s`` seconds; the host's name is unknown.
        UserError: this one was started twice or with another count; the port is taken.
    """
    resolve(place)
    if place.process == 0:
        answer = asyncio.run(Meeting(place).hold(listen(place), timeout_s))
    else:
        answer = join(place, timeout_s)
    if answer.code:
        raise (UserError if answer.code == 2 else UnavailableError)(answer.error)


# Process 0


def listen(place: Place) -> socket.socket:
    """A socket at the coordinator's port.

    Raises:
        UserError: the port is taken or forbidden.
    """
    address = own_address(place)
    if not address:
        warn(
            f"{place.host} is not one address of this machine alone: process 0 listens at port "
            f"{place.port} of all its addresses; the network must be a private one"
        )
    everywhere = not address and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if everywhere or ":" in address else socket.AF_INET
    try:
        return socket.create_server(
            (address, place.port),
            family=family,
            backlog=max(place.processes, MOST_UNHEARD),
            dualstack_ipv6=everywhere,
        )
    except OSError as error:
        raise UserError(
            f"--coordinator={place.address}: port {place.port} cannot be used on this machine "
            f"({os.strerror(error.errno or 0)}); end what uses it, or give another port to all "
            "processes"
        ) from None


class Meeting:
    """Process 0 waits for the others, and tells each that all are there, or what is wrong."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._names: dict[int, str] = {}  # of the machines of those who are there
        self._strangers: Counter[str] = Counter()  # by what was told of them
        self._unheard: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._connections: set[asyncio.Task[None]] = set()

    async def hold(self, listener: socket.socket, timeout_s: float) -> Answer:
        """Answers all when the last one comes, or after ``timeout_s`` seconds."""
        self._all_here = asyncio.Event()
        self._outcome: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(self._serve, sock=listener, limit=LONGEST_LINE)
        code, error = 0, ""
        try:
            async with asyncio.timeout(timeout_s):
                await self._all_here.wait()
        except TimeoutError:
            code, error = 1, self._missing(timeout_s)
        server.close()
        self._outcome.set_result(Answer(mark(self._place, "answer"), code, error))
        for task in self._unheard:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        return self._outcome.result()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its hello to its end."""
        task = asyncio.current_task()
        self._connections.add(task)
        peer = writer.get_extra_info("peername") or ("an unknown address",)
        try:
            with self._among_the_unheard(task):
                hello = await self._welcome(reader, writer, peer[0])
            if hello is not None:
                await self._stay(hello, reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # it is gone: jax will notice if it was one of the run's. Or it said nothing
        finally:
            writer.close()
            self._connections.discard(task)

    @contextmanager
    def _among_the_unheard(self, task: "asyncio.Task[None]") -> Iterator[None]:
        """There are a few only: one more pushes the oldest out, which had the most time."""
        self._unheard[task] = None
        if len(self._unheard) > MOST_UNHEARD:
            oldest = next(iter(self._unheard))
            del self._unheard[oldest]
            oldest.cancel()
            self._tell(f"more than {MOST_UNHEARD} connections say nothing: the oldest is closed")
        try:
            yield
        finally:
            self._unheard.pop(task, None)

    async def _welcome(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str
    ) -> Hello | None:
        """Takes one of the run's processes in; any other is told why not, and let go."""
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                hello = read(Hello, await reader.readline())
        except TimeoutError:
            self._tell(f"{peer} did not say who it is within {HELLO_TIMEOUT_S:g} s")
            return None
        except ValueError as problem:  # also of a line that is too long
            self._tell(f"{peer} is no host of a run ({str(problem)[:80]})")
            return None
        if not same(hello.mark, mark(self._place, "hello")):
            error = "belongs to another run: its --workdir or NEPA_JAX_TOKEN is another"
        else:
            error = self._problem(hello)
        if not error:
            self._enter(hello, writer)
            return hello
        self._tell(f"{hello.machine} ({peer}), --process={number(hello.process)}: {error}")
        await dismiss(Answer(mark(self._place, "answer"), 2, error), reader, writer)
        return None

    def _problem(self, hello: Hello) -> str:
        """Why a process of this run cannot be taken in, or ""."""
        count = self._place.processes
        if hello.processes != count:
            return (
                f"process {number(hello.process)} ({hello.machine}) was started with --processes="
                f"{number(hello.processes)}, process 0 with {count}; give all the same"
            )
        if not 0 < hello.process < count:
            return f"number the processes from 0 to {count - 1}; process 0 waits for the others"
        if hello.process in self._names:
            return (
                f"--process={hello.process} was started twice, on {self._names[hello.process]} and "
                f"{hello.machine}; number the processes from 0 to {count - 1}"
            )
        return ""

    def _enter(self, hello: Hello, writer: asyncio.StreamWriter) -> None:
        keep_alive(writer.get_extra_info("socket"))
        self._names[hello.process] = hello.machine
        if len(self._names) == self._place.processes - 1:
            self._all_here.set()

    async def _stay(
        self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Until the outcome is told, or the other end hangs up: then it may come again."""
        leaving = asyncio.ensure_future(reader.read(1))
        await asyncio.wait({leaving, self._outcome}, return_when=asyncio.FIRST_COMPLETED)
        if not self._outcome.done():
            del self._names[hello.process]
        leaving.cancel()
        with suppress(asyncio.CancelledError):
            await leaving
        if self._outcome.done():
            await dismiss(self._outcome.result(), reader, writer)

    def _tell(self, text: str) -> None:
        """One line for the first of each kind; further kinds are counted only."""
        if text not in self._strangers and len(self._strangers) >= MOST_TOLD:
            text = "others, of whom nothing more is told"
        self._strangers[text] += 1
        if self._strangers[text] == 1:
            warn(f"ignored while the hosts meet: {text}")

    def _missing(self, timeout_s: float) -> str:
        """Says which processes did not arrive, what else came, and what to look at."""
        place = self._place
        absent = [str(i) for i in range(1, place.processes) if i not in self._names]
        more = f" and {len(absent) - 8} more" if len(absent) > 8 else ""
        ignored = "; ".join(f"{count} x {text}" for text, count in self._strangers.most_common(4))
        return (
            f"--coordinator={place.address}: {len(self._names) + 1} of {place.processes} processes "
            f"arrived within {timeout_s:.0f} s; missing: {', '.join(absent[:8])}{more}. See in their "
            f"logs whether they run, and whether they reach {place.host} at port {place.port}"
            + (f". Ignored: {ignored}" if ignored else "")
        )


def number(value: int) -> str:
    """In a few characters, however long it is."""
    return str(value) if abs(value) < 10**9 else "(a long number)"


def keep_alive(line: socket.socket) -> None:
    """Asks now and then whether the other machine is still there: it may be started anew."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):  # Linux: gone after 15 s
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def dismiss(
    answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Sends the answer; then the other end hangs up first, which leaves the port free for jax."""
    with suppress(TimeoutError):
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            writer.write(line_of(answer))
            await writer.drain()
            await reader.read(1)


# The others


def join(place: Place, timeout_s: float) -> Answer:
    """Tells process 0 that this one is there, and waits until all are.

    Process 0 may have begun to wait later: an answer may take ``timeout_s`` seconds again.

    Raises:
        UnavailableError: process 0 does not answer in time.
    """
    deadline, last = time.monotonic() + timeout_s, "no answer"
    told: set[str] = set()
    while time.monotonic() < deadline:
        try:
            return greet(place, timeout_s)
        except OSError as problem:  # not up yet, or restarted
            last = problem.strerror or str(problem) or last
        except ValueError as problem:
            last = str(problem)[:80]
            if last not in told and len(told) < MOST_TOLD:
                told.add(last)
                warn(f"{place.address} does not answer as process 0 of this run: {last}")
        time.sleep(RETRY_S)
    raise UnavailableError(
        f"--coordinator={place.address}: process 0 did not answer within {timeout_s:.0f} s "
        f"({last}); start it on {place.host} with the same command and --processes="
        f"{place.processes}, and let port {place.port} through the firewall"
    )


def greet(place: Place, timeout_s: float) -> Answer:
    """What process 0 answers.

    Raises:
        OSError: it is not there, or hangs up.
        ValueError: it is not this run's process 0 that answers.
    """
    name = socket.gethostname()
    hello = Hello(mark(place, "hello"), place.process, place.processes, name)
    with socket.create_connection((place.host, place.port), timeout=HELLO_TIMEOUT_S) as line:
        line.sendall(line_of(hello))
        answer = read(Answer, read_line(line, time.monotonic() + timeout_s + HELLO_TIMEOUT_S))
    if not same(answer.mark, mark(place, "answer")):
        raise ValueError("another run is there, whose --workdir or NEPA_JAX_TOKEN is another")
    return answer
