"""Several hosts as one run: start together, agree on what they run, stop at the same step."""

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
from jax._src import clusters

from nepa_jax.base.errors import UnavailableError, UserError, in_short
from nepa_jax.base.waiting import told
from nepa_jax.hosts import rendezvous
from nepa_jax.hosts.agree import client, unavailable
from nepa_jax.hosts.place import Place, checked, joined, own_address

ARRIVAL_TIMEOUT_S = 300  # hosts of a pod start minutes apart: images are pulled, names spread
CONNECT_TIMEOUT_S = 60  # of jax itself, once all have met
HEARTBEAT_TIMEOUT_S = 30  # after a host died without a word, the others end within a minute
LEAVE_TIMEOUT_S = 5  # after an error: do the others fail too?


def start(
    coordinator: str | None, processes: int | None, process: int | None, workdir: str = ""
) -> None:
    """Joins this process to the others of its run; does nothing if there are none.

    Must be called before jax touches devices. From then on a host that dies ends the others with
    an error within a minute, and SIGTERM is a notice that ``Preemption`` sees: it no longer ends
    the process by itself.

    Args:
        coordinator: HOST:PORT of process 0; with None for all three, the values come from a TPU
            pod's metadata, SLURM, GKE or Kubernetes, if this is such a place.
        processes: how many there are.
        process: which one this is, from 0.
        workdir: tells this run from others that hosts may meet by mistake; the environment variable
            ``NEPA_JAX_TOKEN`` does so in its place, and a secret one keeps strangers out.

    Raises:
        UserError: values are missing or wrong, or the port is taken.
        UnavailableError: the host is unknown, or not all processes arrive within
            ``ARRIVAL_TIMEOUT_S``.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    local_devices = None
    if all(value is None for value in given.values()):
        coordinator, processes, process, local_devices = surroundings()
        if coordinator is None and processes is None:
            return
        given = {"coordinator": coordinator, "processes": processes, "process": process}
    place = checked(given, os.environ.get("NEPA_JAX_TOKEN") or os.path.normpath(workdir))
    if place.processes == 1:
        return
    print(f"process {place.process} of {place.processes}: joining {place.address}", flush=True)
    with told("waiting for the other processes"):
        rendezvous.meet(place, ARRIVAL_TIMEOUT_S)
    with unavailable("jax cannot connect the hosts that have met"):
        jax.distributed.initialize(
            place.address,
            place.processes,
            place.process,
            local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=CONNECT_TIMEOUT_S,
            coordinator_bind_address=bind_address(place),
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )


def bind_address(place: Place) -> str | None:
    """Where jax's coordinator listens, which process 0 holds; None: as jax does by itself."""
    if place.process or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    own = own_address(place)
    return joined(own, place.port) if own else None


def surroundings() -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Coordinator, processes, process and devices as jax finds them; all None on a lone machine.

    Raises:
        UserError: this is a cluster, but it does not tell all.
    """
    try:
        return clusters.ClusterEnv.auto_detect_unset_distributed_params(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, ARRIVAL_TIMEOUT_S
        )
    except OSError as error:  # of the network: a metadata server that does not answer
        raise UnavailableError(
            f"this looks like a cluster, but nobody says who belongs to the run ({in_short(error)})"
        ) from None
    except Exception as error:  # whatever else a metadata server or a cluster's API answers
        raise UserError(
            "this looks like a cluster, but it does not say who belongs to the run "
            f"({in_short(error)}); give --coordinator=HOST:PORT --processes=N --process=I, or "
            "--coordinator=localhost:1234 --processes=1 --process=0 for this machine alone"
        ) from None


@contextmanager
def failing_together() -> Iterator[None]:
    """Ends this process soon after an error, though others of its run still work.

    Without it jax keeps a failed process waiting for the others, then aborts it. If all fail, as
    with a mistake in the config, all end in the ordinary way; otherwise the others notice that
    this one is gone.
    """
    try:
        yield
    except BaseException as error:
        if jax.distributed.is_initialized() and not all_fail():
            # Runs before jax's own way out, after the error is printed. A process that is known to
            # be alone must not wait for the others.
            atexit.register(exit_at_once, 2 if isinstance(error, UserError) else 1)
        raise


def all_fail() -> bool:
    """Whether every process comes here within some seconds."""
    try:
        client().wait_at_barrier("nepa_jax/failed", LEAVE_TIMEOUT_S * 1000)
    except jax.errors.JaxRuntimeError:
        return False
    return True


def exit_at_once(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
