"""Where the hosts of a run meet: the address that was given, and what this machine makes of it."""

import ipaddress
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from nepa_jax.base.errors import UnavailableError, UserError

NAME_TIMEOUT_S = 30.0  # a pod's own name may become known later than its neighbours start
RETRY_S = 0.5
LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")
MOST_PROCESSES = 100_000  # ten times the largest pods
ADDRESS = re.compile(r"(\[(?P<ip6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[\w.%:-]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Place:
    """A process of a run: where the hosts meet, how many they are, and which one this is."""

    host: str  # of process 0
    port: int
    processes: int
    process: int
    token: str = field(default="", repr=False, compare=False)  # the same on all hosts of the run

    @property
    def address(self) -> str:
        return joined(self.host, self.port)


def checked(given: Mapping[str, Any], token: str) -> Place:
    """The three values as a place.

    Raises:
        UserError: one is missing or wrong.
    """
    missing = [name for name, value in given.items() if value is None]
    if missing:
        there = ", ".join(name for name in given if name not in missing)
        raise UserError(f"{there} without {', '.join(missing)}; give all three, or none")
    coordinator, processes, process = given.values()
    written = ADDRESS.fullmatch(coordinator)
    if not written or not 0 < int(written["port"]) < 65536:
        raise UserError(
            f"--coordinator={coordinator}: is not HOST:PORT; give for example 10.0.0.2:8476"
        )
    host = written["ip6"] or written["host"]
    with suppress(ValueError):  # a name
        host = str(ipaddress.ip_address(host))
    if host in ("0.0.0.0", "::"):
        raise UserError(
            f"--coordinator={coordinator}: is no address that others can reach; give process 0's "
            "name or address as the other hosts see it"
        )
    if not 1 <= processes <= MOST_PROCESSES:
        raise UserError(
            f"--processes={processes}: give the number of processes, 1 to {MOST_PROCESSES}"
        )
    if not 0 <= process < processes:
        raise UserError(
            f"--process={process}: is not among the {processes} of --processes; "
            f"give 0 to {processes - 1}, each once"
        )
    return Place(host, int(written["port"]), processes, process, token)


def resolve(place: Place) -> list[str]:
    """The addresses of the coordinator, IPv4 first; waits a little until its name is known.

    Raises:
        UnavailableError: it stays unknown.
        UserError: no machine can have this name.
    """
    deadline = time.monotonic() + NAME_TIMEOUT_S
    while True:
        try:
            found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
            return sorted({info[4][0] for info in found}, key=lambda address: ":" in address)
        except ValueError:
            raise UserError(
                f"--coordinator={place.address}: {place.host!r} cannot be the name of a machine"
            ) from None
        except socket.gaierror:
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"--coordinator={place.address}: the host {place.host!r} is unknown here; give "
                    "the name or address of process 0's machine as the other hosts see it"
                ) from None
        time.sleep(RETRY_S)


def own_address(place: Place) -> str:
    """The address that process 0 listens at, itself and jax after it; "" for all of its machine's.

    It is the one that was given. A name does for it only if it stands for one address, and that is
    this machine's: many a machine knows its own name as 127.0.1.1, where no other host reaches it,
    and a pod may be reached through an address that it does not have.
    """
    first, *others = resolve(place)
    if place.host == first or place.host in LOOPBACK_NAMES:
        return first if is_own(first) else ""
    return "" if others or is_loopback(first) or not is_own(first) else first


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def is_own(address: str) -> bool:
    """Whether this machine can listen at an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
