"""How the hosts of a run meet: in any order, told of who is missing, and of no stranger's doing."""

import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest
from children import free_port

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.hosts import rendezvous
from nepa_jax.hosts import start as distributed
from nepa_jax.hosts.place import Place
from nepa_jax.hosts.rendezvous import meet
from nepa_jax.hosts.start import start
from nepa_jax.hosts.words import mark


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Who finds nobody asks again soon."""
    monkeypatch.setattr(rendezvous, "RETRY_S", 0.05)


def outcomes(places: list[Place], timeout_s: float = 10) -> list[str]:
    """What each process is told; they start in the given order."""
    meetings = [Attempt(place, timeout_s) for place in places]
    return [meeting.outcome() for meeting in meetings]


class Attempt:
    """One process that meets the others, in a thread."""

    def __init__(self, place: Place, timeout_s: float = 10):
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(place, timeout_s))
        self._thread.start()
        if place.process == 0:
            wait_until_open(place.port)
        else:
            time.sleep(0.03)

    def _run(self, place: Place, timeout_s: float) -> None:
        try:
            meet(place, timeout_s)
        except Exception as error:
            self.error = error

    def outcome(self) -> str:
        """What it is told, empty if all have come."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return str(self.error) if self.error else ""

    def waits(self) -> bool:
        return self._thread.is_alive()


def wait_until_open(port: int) -> None:
    """Asks the kernel, so that the listener sees nobody."""
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    listens = re.compile(rf":{port:04X} [0-9A-F]+:0000 0A ")
    while not any(listens.search(table.read_text()) for table in tables):
        time.sleep(0.01)


def at(port: int, process: int, processes: int = 3, token: str = "") -> Place:
    return Place("localhost", port, processes, process, token)


def connect(port: int, *texts: bytes) -> socket.socket:
    line = socket.create_connection(("localhost", port))
    for text in texts:
        line.sendall(text)
    return line


def hello(place: Place, **changes: object) -> bytes:
    said = dict(
        mark=mark(place, "hello"), process=place.process, processes=place.processes, name="x"
    )
    return json.dumps(said | changes).encode() + b"\n"


def test_all_meet_in_any_order():
    port = free_port()
    assert outcomes([at(port, i, 4) for i in (2, 0, 3, 1)]) == [""] * 4


def test_those_who_came_hear_who_did_not():
    port = free_port()
    told = outcomes([at(port, i) for i in (0, 2)], timeout_s=1.0)
    assert all("2 of 3 processes arrived" in text and "missing: 1." in text for text in told)


def test_one_who_left_may_come_again():
    port = free_port()
    first = Attempt(at(port, 0))
    connect(port, hello(at(port, 1))).close()
    time.sleep(0.1)
    assert outcomes([at(port, i) for i in (1, 2)]) == [""] * 2 and first.outcome() == ""


@pytest.mark.parametrize(
    ("process", "parts"),
    [
        (0, ["1 of 3 processes arrived", "missing: 1, 2"]),
        (1, ["process 0 did not answer", "start it on localhost"]),
    ],
)
def test_a_host_that_never_arrives_is_an_error_soon(process, parts, monkeypatch):
    monkeypatch.setattr(distributed, "ARRIVAL_TIMEOUT_S", 0.5)
    address = f"localhost:{free_port()}"
    began = time.monotonic()
    with pytest.raises(UnavailableError) as error:  # launchers try again
        start(address, 3, process)
    assert time.monotonic() - began < 5
    for part in [address, *parts]:
        assert part in str(error.value)


# Wrong numbers: those who have them hear of it at once, the others go on waiting.


@pytest.mark.trial
def test_a_number_given_twice_is_named(capfd):
    port = free_port()
    first, second, again = Attempt(at(port, 0)), Attempt(at(port, 1)), Attempt(at(port, 1))
    assert "--process=1 was started twice" in again.outcome()
    assert isinstance(again.error, UserError)
    assert first.waits() and second.waits() and "started twice" in capfd.readouterr().err
    assert [Attempt(at(port, 2)).outcome(), second.outcome(), first.outcome()] == [""] * 3


@pytest.mark.trial
def test_another_count_is_named(capfd):
    port = free_port()
    first, other = Attempt(at(port, 0), 1.0), Attempt(at(port, 1, processes=4))
    assert "--processes=4, process 0 with 3" in other.outcome()
    assert isinstance(other.error, UserError)
    assert "--processes=4, process 0 with 3" in capfd.readouterr().err
    assert "missing: 1, 2. " in first.outcome() and "--processes=4" in first.outcome()
    assert isinstance(first.error, UnavailableError)


@pytest.mark.trial
@pytest.mark.parametrize("number", [0, -5, 3, 77, 10**4000])
def test_a_number_that_is_none_of_the_run_is_no_arrival(number):
    port = free_port()
    first = Attempt(at(port, 0))
    with connect(port, hello(at(port, 1), process=number)) as line:
        answer = json.loads(line.makefile().readline())
    assert answer["code"] == 2 and "number the processes from 0 to 2" in answer["error"]
    assert outcomes([at(port, i) for i in (1, 2)]) == [""] * 2 and first.outcome() == ""


# Strangers


@pytest.mark.trial
@pytest.mark.parametrize("values", [("a", "b"), ("", "b")])
def test_two_runs_at_one_port_do_not_mix(values, capfd):
    port = free_port()
    mine, other = (at(port, 1, 2, token) for token in values)
    first, stranger = Attempt(at(port, 0, 2, values[0])), Attempt(other, 0.6)
    assert "another run is there, whose --workdir or NEPA_JAX_TOKEN" in stranger.outcome()
    assert isinstance(stranger.error, UnavailableError) and first.waits()
    assert [Attempt(mine).outcome(), first.outcome()] == ["", ""]
    printed = capfd.readouterr().err
    assert "belongs to another run" in printed and "does not answer as process 0" in printed


def test_an_answer_does_not_serve_as_a_hello():
    place = at(1, 0)
    assert mark(place, "hello") != mark(place, "answer") and "token" not in repr(place)


STRANGE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "nothing": b"",
    "binary": bytes(range(255, 0, -1)),
    "deep": b"[" * 4000 + b"\n",
    "deeper": b'{"a":' * 3000 + b"\n",
    "infinity": b'{"process": Infinity, "processes": 3, "name": "x", "mark": ""}\n',
    "nan": b'{"process": NaN, "processes": 3, "name": "x", "mark": ""}\n',
    "true": b'{"process": true, "processes": 3, "name": "x", "mark": ""}\n',
    "digits": b'{"process": ' + b"1" * 9000 + b', "processes": 3, "name": "x", "mark": ""}\n',
    "half a pair": b'{"process": 1, "processes": 3, "name": "\\ud800", "mark": "\\ud800"}\n',
    "null": b"null\n",
    "list": b"[1]\n",
    "empty": b"{}\n",
    "too long": b"x" * 100_000,
    "no token": b'{"process": 1, "processes": 3, "name": "x"}\n',
    "escapes": b'{"process": 1, "processes": 3, "name": "\\u001b]0;owned\\u0007\\n", "mark": ""}\n',
}


@pytest.mark.trial
@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_a_stranger_is_told_and_changes_nothing(text, capfd):
    port = free_port()
    first = Attempt(at(port, 0))
    connect(port, text).close()
    assert outcomes([at(port, i) for i in (1, 2)]) == [""] * 2 and first.outcome() == ""
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: ignored while the hosts meet: ") and line.isprintable()


@pytest.mark.trial
def test_many_who_say_nothing_delay_nobody(capfd, caplog):
    port = free_port()
    first = Attempt(at(port, 0))
    idle = [connect(port, b"x") for _ in range(200)]
    began = time.monotonic()
    assert outcomes([at(port, i) for i in (1, 2)]) == [""] * 2 and first.outcome() == ""
    assert time.monotonic() - began < 2
    assert len(capfd.readouterr().err.splitlines()) == 1  # not one each
    assert caplog.records == []  # asyncio's
    for line in idle:
        line.close()


@pytest.mark.trial
def test_many_kinds_of_strangers_are_no_flood(capfd):
    port = free_port()
    first = Attempt(at(port, 0), 1.0)
    for i in range(40):
        connect(port, hello(at(port, 1), mark="", name=f"machine {i}")).close()
    text = first.outcome()
    assert len(capfd.readouterr().err.splitlines()) == rendezvous.MOST_TOLD + 1
    assert "Ignored: 30 x others" in text and len(text) < 1000


@pytest.mark.trial
def test_a_byte_now_and_then_keeps_nobody_waiting(monkeypatch):
    """Neither its own connection nor the meeting lasts longer for it."""
    monkeypatch.setattr(rendezvous, "HELLO_TIMEOUT_S", 0.5)
    port = free_port()
    began = time.monotonic()
    first = Attempt(at(port, 0), 1.2)
    line = connect(port)
    with pytest.raises(OSError):
        while time.monotonic() - began < 5:
            line.sendall(b" ")
            time.sleep(0.05)
    assert time.monotonic() - began < 1.5
    assert "did not say who it is within 0.5 s" in first.outcome()
    assert time.monotonic() - began < 3


FALSE = {
    "nothing": b"",
    "empty": b"{}\n",
    "list": b"[1]\n",
    "deep": b"[" * 4000 + b"\n",
    "too long": b"x" * 100_000,
    "other": json.dumps(dict(mark="", code=0, error="")).encode() + b"\n",
    "half a pair": b'{"mark": "\\ud800", "code": 2, "error": ""}\n',
    "code": b'{"mark": "", "code": [], "error": ""}\n',
}


@pytest.mark.trial
@pytest.mark.parametrize("text", FALSE.values(), ids=FALSE)
def test_a_false_process_0_is_not_obeyed(text):
    with socket.create_server(("localhost", 0)) as server:
        guest = Attempt(at(server.getsockname()[1], 1), 0.6)
        line = server.accept()[0]
    line.sendall(text)
    line.close()
    assert "process 0 did not answer within 1 s" in guest.outcome()
    assert isinstance(guest.error, UnavailableError)
