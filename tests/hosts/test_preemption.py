"""Asked to stop: the first notice is remembered, a second one ends the process as the signal would."""

import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import small

from nepa_jax.base.errors import UserError
from nepa_jax.hosts.preemption import NOTICES, Preemption
from nepa_jax.train import pretrain

ALONE = """
    import signal, sys, time
    from nepa_jax.hosts import preemption

    preemption.SAME_NOTICE_S = 0.5
    with preemption.Preemption() as asked:
        print("ready", flush=True)
        while not asked.requested(0):
            time.sleep(0.01)
        print("noticed", flush=True)
        time.sleep(60)
"""


def alone(*command: str) -> subprocess.Popen:
    """A process that waits for a notice, its stderr in stdout."""
    command = (*command, sys.executable, "-c", textwrap.dedent(ALONE))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.trial
@pytest.mark.parametrize("number", NOTICES)
def test_a_notice_is_seen_and_a_second_one_ends_the_process(number):
    process = alone()
    try:
        process.send_signal(number)
        process.send_signal(number)  # to the group as well: the same notice
        lines = [process.stdout.readline() for _ in range(3)]
        assert any(number.name in line and "a second one ends at once" in line for line in lines)
        assert "noticed\n" in lines
        time.sleep(0.7)
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(10) == -number
    finally:
        process.kill()


@pytest.mark.trial
def test_what_nohup_ignores_stays_ignored():
    process = alone("nohup")
    try:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        lines = [process.stdout.readline() for _ in range(3)]
        assert any("SIGTERM" in line for line in lines)
        assert not any("SIGHUP" in line for line in lines)
    finally:
        process.kill()


def test_the_former_handlers_come_back():
    former = {number: signal.getsignal(number) for number in NOTICES}
    with Preemption() as preemption:
        assert all(signal.getsignal(number) != former[number] for number in NOTICES)
        assert not preemption.requested(0)
    assert {number: signal.getsignal(number) for number in NOTICES} == former


def test_they_come_back_when_training_fails(tmp_path):
    numbers = (*NOTICES, signal.SIGUSR1)
    former = [signal.getsignal(number) for number in numbers]
    with pytest.raises(UserError, match="no/such/set"):
        pretrain(small.config("nepa", "no/such/set"), str(tmp_path))
    assert [signal.getsignal(number) for number in numbers] == former


def test_another_thread_may_ask_too():
    asked = []

    def ask() -> None:
        with Preemption() as preemption:
            asked.append(preemption.requested(0))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert asked == [False]
