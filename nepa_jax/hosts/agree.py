"""What all hosts hold alike, and what the first one decides for the others."""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax._src import distributed as jax_distributed

from nepa_jax.base.errors import UnavailableError, UserError, in_short
from nepa_jax.base.text import printable

COMPARE_TIMEOUT_S = 300  # the slowest host may still be opening its data


def client() -> Any:
    """jax's connection to the coordinator: a key-value store and barriers for all processes."""
    return jax_distributed.global_state.client


def say(text: str) -> None:
    """Prints a line on the first host only."""
    if jax.process_index() == 0:
        print(printable(text), flush=True)


def compare_hosts(facts: Mapping[str, str]) -> None:
    """Checks that all processes hold the same facts, such as the hash of the config.

    All must call it, equally often. Does nothing for one process.

    Raises:
        UserError: on all of them alike, naming each fact that differs, its values and their
            processes.
        UnavailableError: a process gave no facts within ``COMPARE_TIMEOUT_S``, or is gone.
    """
    if not jax.distributed.is_initialized():
        return
    with unavailable("the hosts could not compare what they run"):
        rows = exchange(json.dumps({"name": socket.gethostname(), "facts": dict(facts)}))
    hosts = [json.loads(row) for row in rows]
    titles = [f"process {i} ({host['name']})" for i, host in enumerate(hosts)]
    problems = differences([host["facts"] for host in hosts], titles)
    if problems:
        raise UserError(
            f"the hosts differ: {'; '.join(problems)}; "
            "start all with the same command, code, packages and data"
        )


def exchange(value: str) -> list[str]:
    """Everyone's value, in order of the processes.

    Raises:
        UnavailableError: some process gave none in time.
        jax.errors.JaxRuntimeError: it is gone.
    """
    # Not jax.process_index(), which starts the devices: what differs may break just that.
    me, processes = (
        jax_distributed.global_state.process_id,
        jax_distributed.global_state.num_processes,
    )
    # How often this process was here is kept in the store too: keys cannot be written twice.
    turn = client().key_value_increment(f"nepa_jax/turns/{me}", 1)
    client().key_value_set(f"nepa_jax/values/{turn}/{me}", value)
    deadline = time.monotonic() + COMPARE_TIMEOUT_S
    values = [wait_for(f"nepa_jax/values/{turn}/{i}", i, deadline) for i in range(processes)]
    # Process 0 holds the store: it must not leave before all have read.
    client().wait_at_barrier(f"nepa_jax/values/{turn}", COMPARE_TIMEOUT_S * 1000)
    return values


def differences(hosts: Sequence[Mapping[str, str]], titles: Sequence[str]) -> list[str]:
    """One text for each fact that is not the same everywhere: most hosts' value, and the others."""
    names = sorted({name for facts in hosts for name in facts})
    found = []
    for name in names:
        values = [facts.get(name, "not given") for facts in hosts]
        common = most_common(values)
        if len(set(values)) == 1:
            continue
        others = [f"{value} on {title}" for value, title in zip(values, titles, strict=True) if value != common]  # fmt: skip
        more = f" and {len(others) - 4} more" if len(others) > 4 else ""
        found.append(f"{name} is {common}, but {', '.join(others[:4])}{more}")
    return found


def most_common(values: Sequence[str]) -> str:
    """The value of most; of process 0 if that is undecided."""
    counts = Counter(values)
    return max(values, key=lambda value: (counts[value], value == values[0]))


def from_first_host(answer: Callable[[], str]) -> str:
    """What process 0 answers, on all processes; all must ask, equally often.

    Storage may show its hosts different listings, and clocks differ: one of them decides.

    Raises:
        UnavailableError: process 0 gave no answer in time.
    """
    if not jax.distributed.is_initialized():
        return answer()
    me = jax.process_index()
    turn = client().key_value_increment(f"nepa_jax/answers/turns/{me}", 1)
    key = f"nepa_jax/answers/{turn}"
    if me:
        return wait_for(key, 0, time.monotonic() + COMPARE_TIMEOUT_S)
    text = answer()
    client().key_value_set(key, text)
    return text


def wait_for(key: str, process: int, deadline: float) -> str:
    """What a process has said or will say under a key.

    Raises:
        UnavailableError: it says nothing before the deadline, of ``time.monotonic``.
        jax.errors.JaxRuntimeError: the store is gone.
    """
    remaining_s = max(deadline - time.monotonic(), 0.1)
    try:
        return client().blocking_key_value_get(key, int(remaining_s * 1000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        raise UnavailableError(
            f"process {process} did not answer within {COMPARE_TIMEOUT_S} s; see its log"
        ) from None


@contextmanager
def unavailable(what: str) -> Iterator[None]:
    """An error of jax's service for several hosts is a host or a network that is not there."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        raise UnavailableError(f"{what}: {in_short(error)}; see the logs of all hosts") from error
