"""Several processes as one run: how they meet, compare, stop, and what mistakes say."""

import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster
from ports import free_port

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.hosts import agree, rendezvous
from nepa_jax.hosts import start as distributed
from nepa_jax.hosts.agree import differences
from nepa_jax.hosts.rendezvous import Place, listen, mark, meet, own_address
from nepa_jax.hosts.start import start


def child(script: str, *arguments: object) -> subprocess.Popen:
    """A Python process of its own, with one device, stderr in stdout."""
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )


def finish(processes: list[subprocess.Popen], timeout_s: float = 60) -> list[tuple[int, str]]:
    """Exit codes and outputs; no process outlives this."""
    try:
        outputs = [process.communicate(timeout=timeout_s)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, output) for p, output in zip(processes, outputs, strict=True)]


# Mistakes


@pytest.mark.trial
@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (("here:1", None, None), ["--coordinator without --processes, --process", "all three"]),
        ((None, 2, 1), ["--processes, --process without --coordinator"]),
        (("here", 2, 0), ["--coordinator=here", "HOST:PORT"]),
        (("here:port", 2, 0), ["--coordinator=here:port", "HOST:PORT"]),
        (("here:70000", 2, 0), ["--coordinator=here:70000", "HOST:PORT"]),
        ((":1234", 2, 0), ["--coordinator=:1234", "HOST:PORT"]),
        (("http://here:1", 2, 0), ["--coordinator=http://here:1", "HOST:PORT"]),
        (("here there:1", 2, 0), ["--coordinator=here there:1", "HOST:PORT"]),
        (("here:" + "1" * 5000, 2, 0), ["HOST:PORT"]),
        (("[::1:80", 2, 0), ["--coordinator=[::1:80", "HOST:PORT"]),
        (("0.0.0.0:80", 2, 0), ["--coordinator=0.0.0.0:80", "no address that others can reach"]),
        (("[::]:80", 2, 0), ["--coordinator=[::]:80", "no address that others can reach"]),
        (("here" * 20 + ":1", 2, 0), ["cannot be the name of a machine"]),
        (("here:1", 0, 0), ["--processes=0", "1 to 100000"]),
        (("here:1", 10**9, 0), ["--processes=1000000000", "1 to 100000"]),
        (("here:1", 2, 2), ["--process=2", "0 to 1"]),
        (("here:1", 2, -1), ["--process=-1", "0 to 1"]),
    ],
)
def test_a_wrong_value_is_one_error(values, parts):
    with pytest.raises(UserError) as error:
        start(*values)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.trial
def test_an_unknown_host_may_become_known(monkeypatch):
    monkeypatch.setattr(rendezvous, "NAME_TIMEOUT_S", 0)
    with pytest.raises(UnavailableError, match=r"no-such-host\.invalid.* is unknown here"):
        start("no-such-host.invalid:1", 2, 0)


@pytest.mark.trial
def test_a_taken_port_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used") as error:
            start(f"localhost:{port}", 2, 0)
    assert "another port" in str(error.value)


@pytest.mark.parametrize(
    ("process", "parts"),
    [
        (0, ["1 of 3 processes arrived", "missing: 1, 2"]),
        (1, ["process 0 did not answer", "start it on localhost"]),
    ],
)
def test_a_host_that_never_arrives_is_an_error_soon(process, parts, monkeypatch):
    monkeypatch.setattr(distributed, "ARRIVAL_TIMEOUT_S", 1)
    address = f"localhost:{free_port()}"
    began = time.monotonic()
    with pytest.raises(UnavailableError) as error:  # launchers try again
        start(address, 3, process)
    assert time.monotonic() - began < 5
    for part in [address, *parts]:
        assert part in str(error.value)


# Meeting


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
    told = outcomes([at(port, i) for i in (0, 2)], timeout_s=1.5)
    assert all("2 of 3 processes arrived" in text and "missing: 1." in text for text in told)


def test_one_who_left_may_come_again():
    port = free_port()
    first = Attempt(at(port, 0))
    connect(port, hello(at(port, 1))).close()
    time.sleep(0.1)
    assert outcomes([at(port, i) for i in (1, 2)]) == [""] * 2 and first.outcome() == ""


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
    first, other = Attempt(at(port, 0), 1.5), Attempt(at(port, 1, processes=4))
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
    first, stranger = Attempt(at(port, 0, 2, values[0])), Attempt(other, 1)
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
    first = Attempt(at(port, 0), 1.5)
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
    first = Attempt(at(port, 0), 2)
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
        guest = Attempt(at(server.getsockname()[1], 1), 0.8)
        line = server.accept()[0]
    line.sendall(text)
    line.close()
    assert "process 0 did not answer within 1 s" in guest.outcome()
    assert isinstance(guest.error, UnavailableError)


# Where process 0 listens


@pytest.mark.trial
@pytest.mark.parametrize(
    ("host", "known_as", "own"),
    [
        ("localhost", ["::1", "127.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["127.0.0.1"], "127.0.0.1"),
        ("node0", ["127.0.1.1"], ""),  # how Debian knows itself
        ("node0", ["127.0.0.2"], ""),
        ("node0", ["203.0.113.7"], ""),  # translated on the way here
        ("203.0.113.7", ["203.0.113.7"], ""),
        ("node0", ["10.0.0.1", "10.0.0.2"], ""),
    ],
)
def test_process_0_listens_at_the_given_address_if_that_is_its_own(
    host, known_as, own, monkeypatch, capfd
):
    known = [(None, None, None, None, (address, 0)) for address in known_as]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kw: known)
    place = Place(host, free_port(), 2, 0)
    with listen(place) as listener:
        address = listener.getsockname()[0]
    assert own_address(place) == own and address == (own or "::")
    assert ("listens at port" in capfd.readouterr().err) == (own == "")
    bound = distributed.bind_address(place)
    assert bound == (f"{own}:{place.port}" if own else None)


def test_a_name_of_this_machines_own_address_is_listened_at(monkeypatch):
    """127.0.0.2 stands for a network card's address here: no other is sure to be there."""
    known = [(None, None, None, None, ("127.0.0.2", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kw: known)
    monkeypatch.setattr(rendezvous, "is_loopback", lambda address: False)
    assert own_address(Place("node0", 1, 2, 0)) == "127.0.0.2"


# Where the values come from


@pytest.fixture
def joined(monkeypatch) -> list:
    """Records with what start would join, and joins nothing."""
    calls = []
    monkeypatch.setattr(rendezvous, "meet", lambda place, timeout_s: calls.append(place))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kw: calls.append(args[3]))
    return calls


def test_a_lone_machine_joins_nothing(joined, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    start(None, None, None)
    start("localhost:1", 1, 0)
    assert joined == []


def test_slurm_tells_all(joined, monkeypatch):
    values = dict(JOB_ID="7", STEP_NODELIST="gpu[03-04]", NTASKS="16", PROCID="9", LOCALID="1")
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    start(None, None, None)
    assert joined == [Place("gpu03", 61447, 16, 9), [1]]  # one device for each process


def test_gke_tells_all_for_tpus(joined, monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr("jax._src.clusters.cluster.running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,other")
    for name in ("COORDINATOR_ADDRESS", "NUM_SLICES", "SLICE_ID"):
        monkeypatch.setenv(f"MEGASCALE_{name}", "")
    start(None, None, None)
    assert joined == [Place("localhost", 8482, 2, 1), None]


def test_a_cluster_that_does_not_tell_is_one_error(monkeypatch):
    for name in ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID"):
        monkeypatch.setenv(f"SLURM_{name}", "unreadable")
    with pytest.raises(UserError, match="--processes=1 --process=0 for this machine alone"):
        start(None, None, None)


# The handshake


def test_differences_name_the_fact_the_hosts_and_the_values():
    hosts = [{"jax": "0.12", "step": "5"}] + [{"jax": "0.10", "step": "5"}] * 2
    assert differences(hosts, ["a", "b", "c"]) == ["jax is 0.10, but 0.12 on a"]
    assert differences(hosts[:2], ["a", "b"]) == ["jax is 0.12, but 0.10 on b"]  # undecided
    assert differences([{}, {"step": "5"}], ["a", "b"]) == ["step is not given, but 5 on b"]
    assert differences([{}, {}], ["a", "b"]) == []
    many = differences([{"x": "1"}] * 9 + [{"x": "2"}] * 8, [str(i) for i in range(17)])
    assert many[0].endswith("and 4 more")


def test_one_process_compares_nothing():
    agree.compare_hosts({"jax": "1"})


AGREE = """
    import os, signal, sys, time
    from nepa_jax.hosts import agree
    from nepa_jax.hosts import start as distributed
    from nepa_jax.hosts.preemption import Preemption

    address, me = sys.argv[1], int(sys.argv[2])
    distributed.start(address, 2, me)
    with distributed.failing_together():
        agree.compare_hosts({"data": "x"})
        print("equal")
        if me == 0:
            tables = open("/proc/net/tcp").read() + open("/proc/net/tcp6").read()
            port = f":{int(address.rpartition(':')[2]):04X}"
            words = [line.split() for line in tables.splitlines()]
            print("listens at", *(w[1] for w in words if w[1].endswith(port) and w[3] == "0A"))
        with Preemption() as preemption:
            for step in range(400):
                if me == 1 and step == 3:
                    os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C in one window of two
                if preemption.requested(step):
                    break
                time.sleep(0.03 if me else 0.05)
        print("stop at", step)
        try:
            agree.compare_hosts({"data": f"x{me}", "code": "y"})
        except distributed.UserError as error:
            print("error:", error)
            raise SystemExit(2)
"""


def test_two_processes_compare_and_stop_at_the_same_step():
    address = f"localhost:{free_port()}"
    ended = finish([child(AGREE, address, i) for i in range(2)])
    stops = []
    for code, output in ended:
        assert code == 2 and "equal" in output, output
        assert "data is x0, but x1 on process 1" in output
        assert "code is" not in output, output
        stops += [line for line in output.splitlines() if line.startswith("stop at")]
    (listens,) = re.findall("listens at .*", ended[0][1])  # jax: there alone
    assert re.fullmatch("listens at (0{16}FFFF0000)?0100007F:[0-9A-F]{4}", listens)
    assert len(stops) == 2 and len(set(stops)) == 1 and stops[0] != "stop at 399"


FAIL = """
    import sys, time
    from nepa_jax.hosts import start as distributed

    distributed.HEARTBEAT_TIMEOUT_S, distributed.LEAVE_TIMEOUT_S = 5, 1
    distributed.start(sys.argv[1], 2, int(sys.argv[2]))
    with distributed.failing_together():
        if sys.argv[2] == "1":
            raise distributed.UserError("only here")
        time.sleep(120)
"""


def test_one_process_fails_and_the_other_ends_too():
    """The failed one at once; the other when heartbeats stop."""
    address = f"localhost:{free_port()}"
    began = time.monotonic()
    survivor, failed = finish([child(FAIL, address, i) for i in range(2)])
    assert time.monotonic() - began < 45
    assert failed[0] == 2 and "only here" in failed[1], failed[1]
    assert survivor[0] not in (0, 2, None) and "another task died" in survivor[1], survivor[1]


@pytest.mark.parametrize(
    ("error", "code"), [(UserError("x"), 2), (UnavailableError("x"), 1), (KeyboardInterrupt(), 1)]
)
def test_a_process_that_fails_alone_keeps_its_exit_code(error, code, monkeypatch):
    """jax would abort it, and launchers would not know what it was."""
    ends = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "all_fail", lambda: False)
    monkeypatch.setattr(distributed.atexit, "register", lambda function, code: ends.append(code))
    with pytest.raises(type(error)), distributed.failing_together():
        raise error
    assert ends == [code]


@pytest.mark.trial
def test_what_a_host_did_not_say_in_time_may_come_later(monkeypatch):
    class Store:
        """jax's, without the value of process 1."""

        def key_value_increment(self, key: str, by: int) -> int:
            return by

        def key_value_set(self, key: str, value: str) -> None:
            pass

        def blocking_key_value_get(self, key: str, timeout_ms: int) -> str:
            if key.endswith("/0"):
                return "{}"
            raise jax.errors.JaxRuntimeError(self.reason)

    monkeypatch.setattr(agree, "client", Store)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(agree.jax_distributed.global_state, "num_processes", 2)
    for Store.reason, text in (
        ("DEADLINE_EXCEEDED: ...", "process 1 did not answer within 300 s"),
        ("UNAVAILABLE: ...", "the hosts could not compare what they run"),
    ):
        with pytest.raises(UnavailableError, match=text):
            agree.compare_hosts({})
