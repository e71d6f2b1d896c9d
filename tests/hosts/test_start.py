"""Several processes as one run: what starts them, what mistakes say, and how they fail."""

import socket
import time

import jax
import pytest
from children import child, finish, free_port
from jax._src.clusters import cloud_tpu_cluster

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.hosts import rendezvous
from nepa_jax.hosts import start as distributed
from nepa_jax.hosts.place import Place
from nepa_jax.hosts.start import start

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
def test_a_taken_port_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used") as error:
            start(f"localhost:{port}", 2, 0)
    assert "another port" in str(error.value)


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


# Failing


FAIL = """
    import sys, time
    from nepa_jax.hosts import start as distributed

    distributed.HEARTBEAT_TIMEOUT_S, distributed.LEAVE_TIMEOUT_S = 3, 1
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
