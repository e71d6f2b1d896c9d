"""The address where hosts meet: what stands for it here, and where process 0 listens."""

import socket

import pytest
from children import free_port

from nepa_jax.base.errors import UnavailableError
from nepa_jax.hosts import place
from nepa_jax.hosts import start as distributed
from nepa_jax.hosts.place import Place, own_address
from nepa_jax.hosts.rendezvous import listen
from nepa_jax.hosts.start import start


@pytest.mark.trial
def test_an_unknown_host_may_become_known(monkeypatch):
    monkeypatch.setattr(place, "NAME_TIMEOUT_S", 0)
    with pytest.raises(UnavailableError, match=r"no-such-host\.invalid.* is unknown here"):
        start("no-such-host.invalid:1", 2, 0)


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
    monkeypatch.setattr(place, "is_loopback", lambda address: False)
    assert own_address(Place("node0", 1, 2, 0)) == "127.0.0.2"
