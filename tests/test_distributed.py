"""Several processes as one run: how they meet, compare, stop, and what mistakes say."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster
from ports import free_port

from nepa_jax import distributed, rendezvous
from nepa_jax.distributed import differences, start
from nepa_jax.errors import UserError
from nepa_jax.rendezvous import Place


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


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (("here:1", None, None), ["--coordinator without --processes, --process", "all three"]),
        ((None, 2, 1), ["--processes, --process without --coordinator"]),
        (("here", 2, 0), ["--coordinator=here", "HOST:PORT"]),
        (("here:port", 2, 0), ["--coordinator=here:port", "HOST:PORT"]),
        (("here:70000", 2, 0), ["--coordinator=here:70000", "HOST:PORT"]),
        ((":1234", 2, 0), ["--coordinator=:1234", "HOST:PORT"]),
        (("here:1", 0, 0), ["--processes=0", "1 or more"]),
        (("here:1", 2, 2), ["--process=2", "0 to 1"]),
        (("here:1", 2, -1), ["--process=-1", "0 to 1"]),
        (("no-such-host.invalid:1", 2, 0), ["no-such-host.invalid", "unknown here"]),
    ],
)
def test_a_wrong_value_is_one_error(values, parts, monkeypatch):
    monkeypatch.setattr(rendezvous, "NAME_TIMEOUT_S", 0)
    with pytest.raises(UserError) as error:
        start(*values)
    for part in parts:
        assert part in str(error.value)


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
    with pytest.raises(UserError) as error:
        start(address, 3, process)
    assert time.monotonic() - began < 5
    for part in [address, *parts]:
        assert part in str(error.value)


# Meeting


def outcomes(places: list[Place], timeout_s: float = 10) -> list[str]:
    """What each process is told; they start in the given order."""
    told = [""] * len(places)

    def run(i: int) -> None:
        try:
            rendezvous.meet(places[i], timeout_s)
        except UserError as error:
            told[i] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(places))]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join(30)
    return told


def test_all_meet_in_any_order():
    port = free_port()
    assert outcomes([Place("localhost", port, 4, i) for i in (2, 0, 3, 1)]) == [""] * 4


def test_those_who_came_hear_who_did_not():
    port = free_port()
    told = outcomes([Place("localhost", port, 3, i) for i in (0, 2)], timeout_s=1.5)
    assert all("2 of 3 processes arrived" in text and "missing: 1." in text for text in told)


def test_a_number_given_twice_is_named_everywhere():
    port = free_port()
    told = outcomes([Place("localhost", port, 3, i) for i in (0, 1, 1)])
    assert all("--process=1 was started twice" in text for text in told)


def test_different_counts_are_named_everywhere():
    port = free_port()
    told = outcomes([Place("localhost", port, 3, 0), Place("localhost", port, 4, 1)])
    assert all("--processes=4" in text and "process 0 with 3" in text for text in told)


def test_strangers_and_those_who_come_again_do_no_harm():
    port = free_port()
    waiting = threading.Thread(target=rendezvous.meet, args=(Place("localhost", port, 3, 0), 10))
    waiting.start()
    time.sleep(0.1)
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with socket.create_connection(("localhost", port)) as killed:
        killed.sendall(b'{"process": 1, "processes": 3, "name": "here"}\n')
        time.sleep(0.1)
    assert outcomes([Place("localhost", port, 3, i) for i in (1, 2)]) == [""] * 2
    waiting.join(10)
    assert not waiting.is_alive()


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
    distributed.compare_hosts({"jax": "1"})


AGREE = """
    import os, signal, sys, time
    from nepa_jax import distributed

    address, me = sys.argv[1], int(sys.argv[2])
    distributed.start(address, 2, me)
    with distributed.failing_together():
        distributed.compare_hosts({"data": "x"})
        print("equal")
        with distributed.Preemption() as preemption:
            for step in range(400):
                if me == 1 and step == 3:
                    os.kill(os.getpid(), signal.SIGTERM)
                if preemption.requested(step):
                    break
                time.sleep(0.03 if me else 0.05)
        print("stop at", step)
        try:
            distributed.compare_hosts({"data": f"x{me}", "code": "y"})
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
    assert len(stops) == 2 and len(set(stops)) == 1 and stops[0] != "stop at 399"


FAIL = """
    import sys, time
    from nepa_jax import distributed

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
    assert survivor[0] not in (0, None) and "another task died" in survivor[1], survivor[1]


# Preemption


ALONE = """
    import signal, time
    from nepa_jax.distributed import Preemption

    with Preemption() as preemption:
        print("ready")
        while not preemption.requested(0):
            time.sleep(0.01)
        print("noticed")
        time.sleep(60)
"""


def test_one_process_notices_sigterm_and_a_second_one_ends_it():
    process = child(ALONE)
    try:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # to the group as well: the same notice
        lines = [process.stdout.readline() for _ in range(2)]
        assert any("a second one ends at once" in line for line in lines)
        assert "noticed\n" in lines
        time.sleep(distributed.SAME_NOTICE_S + 0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()


def test_the_former_handler_comes_back():
    former = signal.getsignal(signal.SIGTERM)
    with distributed.Preemption() as preemption:
        assert signal.getsignal(signal.SIGTERM) != former
        assert not preemption.requested(0)
    assert signal.getsignal(signal.SIGTERM) == former


def test_another_thread_may_ask_too():
    asked = []

    def ask() -> None:
        with distributed.Preemption() as preemption:
            asked.append(preemption.requested(0))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert asked == [False]
