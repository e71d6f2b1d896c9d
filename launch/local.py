"""Starts a run as several processes on this machine, each with its own CPU devices.

python launch/local.py --processes=2 --devices-per-process=4 -- pretrain --config=... --workdir=W
"""

import argparse
import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

POLL_S = 0.05
THREADS_PER_DEVICE = 4
PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


def main() -> int:
    """The exit code: 0 if all processes ended with 0, else that of the first that did not."""
    args = parse()
    address = f"localhost:{free_port()}"
    commands = [
        [
            *(sys.executable, "-u", "-m", "nepa_jax", *args.verb),
            *(f"--coordinator={address}", f"--processes={args.processes}", f"--process={i}"),
        ]
        for i in range(args.processes)
    ]
    return run(commands, environment(args.devices_per_process), args.grace)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Start a run as several processes on this machine, with CPU devices.",
        epilog="example: python launch/local.py --processes=2 --devices-per-process=4 -- "
        "pretrain --config=configs/demo.py:nepa --config.data.path=DIR --workdir=W",
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--devices-per-process", type=int, default=1)
    parser.add_argument(
        "--grace",
        type=float,
        default=60,
        metavar="SECONDS",
        help="how long processes may go on after SIGTERM, SIGINT or the failure of one (60)",
    )
    parser.add_argument("verb", nargs="+", help="after --: the verb and its arguments")
    args = parser.parse_args()
    for name in ("processes", "devices_per_process"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(args, name)}: give 1 or more")
    return args


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """This environment, with so many CPU devices for each process and threads enough for them.

    XLA runs collectives of a loop and those beside it at the same time, in an order that devices
    need not share. Each that waits keeps a thread: with one per device (XLA's default, where there
    are fewer cores) all can be kept while a device still needs one, and nothing moves again.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    threads = os.environ.get("NPROC") or str(max(THREADS_PER_DEVICE * devices, os.cpu_count() or 1))
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(), "NPROC": threads}


def run(commands: Sequence[Sequence[str]], env: dict[str, str], grace_s: float) -> int:
    """Runs all commands; nothing they started is left when it returns."""
    children: list[subprocess.Popen[bytes]] = []
    stopping: list[int] = []

    def forward(number: int, _: object) -> None:
        stopping.append(number)
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    try:
        for command in commands:
            children.append(begin(command, env))
            if stopping:  # it came before this child was in the list
                children[-1].send_signal(stopping[-1])
        printers = [prefix_lines(i, child.stdout) for i, child in enumerate(children)]
        code = wait(children, lambda: bool(stopping), grace_s)
    finally:
        for child in children:
            end_group(child)
    for printer in printers:
        printer.join()
    return code


def begin(command: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A process in a group of its own: loader workers are in it too and can be ended with it."""
    return subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=die_with_parent if sys.platform == "linux" else None,
    )


def die_with_parent() -> None:
    """In the child: SIGKILL for it too, should this launcher be killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def prefix_lines(process: int, lines: IO[bytes]) -> threading.Thread:
    """Prints each line as soon as it is there, with the number of its process."""

    def copy() -> None:
        for line in lines:
            text = line if line.endswith(b"\n") else line + b"\n"
            os.write(1, f"[{process}] ".encode() + text)

    thread = threading.Thread(target=copy)
    thread.start()
    return thread


def wait(
    children: Sequence[subprocess.Popen[bytes]], stopping: Callable[[], bool], grace_s: float
) -> int:
    """The first bad exit code, or 0. Returns early when the grace after a failure or signal ends."""
    code, deadline = 0, float("inf")
    while time.monotonic() < deadline:
        codes = [child.poll() for child in children]
        failed = [i for i, found in enumerate(codes) if found]
        if failed and not code:
            code = shell_code(codes[failed[0]])
            print(f"process {failed[0]} ended with {code}", file=sys.stderr)
        if None not in codes:
            return code
        if (code or stopping()) and deadline == float("inf"):
            deadline = time.monotonic() + grace_s
        time.sleep(POLL_S)
    running = [str(i) for i, child in enumerate(children) if child.poll() is None]
    print(f"process {', '.join(running)} still runs after {grace_s:g} s: killed", file=sys.stderr)
    return code or shell_code(-signal.SIGKILL)


def shell_code(code: int) -> int:
    """Exit code as shells give it: 128 + number for a signal."""
    return 128 - code if code < 0 else code


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Kills what is left of a process and of what it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    sys.exit(main())
