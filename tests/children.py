"""Processes that tests start, and a port for them to meet at."""

import os
import socket
import subprocess
import sys
import textwrap


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


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
