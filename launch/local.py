"""Starts a run as several processes on this machine, each with its own CPU devices.

python launch/local.py --processes=2 --devices-per-process=4 -- pretrain --config=... --workdir=W
"""

import argparse
import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, NoReturn

POLL_S = 0.05
SAME_NOTICE_S = 1.0  # supervisors signal a process and its group: that is one notice
DRAIN_S = 5.0  # for what ended processes have still printed
THREADS_PER_DEVICE = 4
MOST_PROCESSES, MOST_DEVICES = 256, 1024
PR_SET_PDEATHSIG = 1  # from Linux's prctl.h
NOTICES = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# One for each process and group of processes that talk; errors are other lines.
CHATTER = re.compile(rb"\[Gloo\] Rank \d+ is connected to \d+ peer ranks\.")


def main() -> int:
    """The exit code: 0 if all processes ended with 0, else that of the first that did not."""
    args = parse()
    address = f"localhost:{free_port()}"
    commands = [
        [
            # -P: the current folder's modules are not taken for ours.
            *(sys.executable, "-u", "-P", "-m", "nepa_jax", *args.verb),
            *(f"--coordinator={address}", f"--processes={args.processes}", f"--process={i}"),
        ]
        for i in range(args.processes)
    ]
    return run(commands, environment(args.devices_per_process), args.grace)


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def parse() -> argparse.Namespace:
    parser = Parser(
        description="Start a run as several processes on this machine, with CPU devices.",
        epilog="example: python launch/local.py --processes=2 --devices-per-process=4 -- "
        "pretrain --config=configs/demo.py:nepa --config.data.path=DIR --workdir=W",
        allow_abbrev=False,
    )
    parser.add_argument("--processes", type=up_to(MOST_PROCESSES), required=True)
    parser.add_argument("--devices-per-process", type=up_to(MOST_DEVICES), default=1)
    parser.add_argument(
        "--grace",
        type=seconds,
        default=60,
        metavar="SECONDS",
        help="how long processes may go on after a signal or the failure of one (60)",
    )
    parser.add_argument("verb", nargs="+", help="after --: the verb and its arguments")
    return parser.parse_args()


def up_to(most: int) -> Callable[[str], int]:
    """Reads a whole number of 1 or more."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if 1 <= int(text) <= most:
                return int(text)
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: give a number from 1 to {most}")

    return read


def seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e6:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r}: give seconds, more than 0")


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
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
    printers: list[threading.Thread] = []
    stopping = Stopping(children)
    for number in NOTICES:
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, stopping.notice)
    try:
        for i, command in enumerate(commands):
            children.append(begin(command, env))
            printers.append(prefix_lines(i, children[-1].stdout))
            stopping.pass_on(children[-1])  # what came before this child was in the list
        return wait(children, stopping, grace_s)
    finally:
        for child in children:
            end_group(child)
        for printer in printers:
            printer.join(DRAIN_S)


class Stopping:
    """Signals to this launcher: the first goes to all processes, a second one ends them at once.

    The processes are in sessions of their own, so that the terminal's Ctrl-C reaches them through
    here only, and all save together.
    """

    def __init__(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        self._children = children
        self._first: tuple[int, float] | None = None  # the signal, and when it came
        self.code = 0  # of a second signal

    def __bool__(self) -> bool:
        return self._first is not None

    def notice(self, number: int, _: object) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = number, now
            for child in self._children:
                self.pass_on(child)
        elif now - self._first[1] > SAME_NOTICE_S:
            self.code = shell_code(-number)

    def pass_on(self, child: subprocess.Popen[bytes]) -> None:
        if self._first is not None and child.poll() is None:
            child.send_signal(self._first[0])


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
        for line in lines:  # to the end, though nobody may read: a full pipe would stop the process
            if not CHATTER.match(line):
                text = line if line.endswith(b"\n") else line + b"\n"
                write(1, f"[{process}] ".encode() + text)

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def write(descriptor: int, text: bytes) -> None:
    """The terminal, or the reader of a pipe, may be gone: the run goes on."""
    with contextlib.suppress(OSError):
        os.write(descriptor, text)


def say(text: str) -> None:
    write(2, f"{text}\n".encode())


def wait(children: Sequence[subprocess.Popen[bytes]], stopping: Stopping, grace_s: float) -> int:
    """The first bad exit code, or 0. Returns early when the grace after a failure or signal ends."""
    code, deadline = 0, float("inf")
    while time.monotonic() < deadline:
        codes = [child.poll() for child in children]
        failed = [i for i, found in enumerate(codes) if found]
        if failed and not code:
            code = shell_code(codes[failed[0]])
            say(f"process {failed[0]} ended with {code}")
        if None not in codes:
            return code
        if stopping.code:
            say("a second signal: all are ended at once")
            return stopping.code
        if (code or stopping) and deadline == float("inf"):
            deadline = time.monotonic() + grace_s
        time.sleep(POLL_S)
    running = [str(i) for i, child in enumerate(children) if child.poll() is None]
    say(f"process {', '.join(running)} still runs after {grace_s:g} s: killed")
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
