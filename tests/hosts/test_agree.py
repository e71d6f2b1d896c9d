"""What all hosts of a run hold alike: compared, told of, and decided by one."""

import re

import jax
import pytest
from children import child, finish, free_port

from nepa_jax.base.errors import UnavailableError
from nepa_jax.hosts import agree
from nepa_jax.hosts.agree import differences


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
