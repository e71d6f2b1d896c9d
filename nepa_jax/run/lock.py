"""One run at a time in a workdir, on any storage.

The kernel's lock tells processes of one machine apart and goes with its holder, also by kill -9.
Buckets that are mounted on several machines know no such lock: there the holder writes a beat into
the file every few seconds, and a beat that stands still is a holder that is gone.
"""

import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from nepa_jax.base.errors import UserError
from nepa_jax.base.text import printable, read_json

BEAT_S = 10.0
STALE_S = 45.0  # without a beat: the holder is gone
LOOK_S = 1.0
FILE_BYTES = 1024


@dataclass(frozen=True)
class Holder:
    """Who holds a workdir, and the time of its last beat."""

    run: str  # made at its start, like no other
    host: str
    boot: str  # of the machine's kernel
    pid: int
    beat: float  # seconds since the epoch, on the holder's clock

    @property
    def name(self) -> str:
        return printable(f"process {self.pid} on {self.host}")


class WorkdirLock:
    """Holds ``WORKDIR/run.lock`` while the context is open.

    Raises:
        UserError: another run is going on in this workdir; when entered.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / "run.lock"
        self._workdir = workdir
        self._me = Holder(uuid.uuid4().hex, socket.gethostname(), _boot(), os.getpid(), 0.0)
        self._ended = threading.Event()
        self._beats = threading.Thread(target=self._keep_beating, name="workdir_lock", daemon=True)
        self._taken_by: Holder | None = None

    def __enter__(self) -> "WorkdirLock":
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise
        self._beats.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._beats.join()
        if self._taken_by is None:
            self._write("")  # not removed: another may have it open already
        os.close(self._file)

    def check(self) -> None:
        """Raises UserError if another run took the workdir while this one stood still for long."""
        if self._taken_by is not None:
            raise UserError(
                f"{self._workdir}: {self._taken_by.name} took this workdir over, since this run gave "
                f"no sign of life for {STALE_S:.0f} s; it ends here, and that one goes on"
            )

    def _take(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._in_use(holder_of(self._workdir)) from None
        except OSError:  # this storage knows no locks: the beats must do
            pass
        other = holder_of(self._workdir)
        if other is not None and other.boot != self._me.boot:
            self._await_silence(other)
        self._beat()

    def _await_silence(self, other: Holder) -> None:
        """Returns when the holder on another machine has given no beat for long enough."""
        began = time.time()
        until = min(other.beat, began) + STALE_S  # a clock that is ahead must not keep us longer
        if until > began:
            print(
                f"{self._workdir}: {other.name} was at work here {began - other.beat:.0f} s ago; "
                f"waiting up to {until - began:.0f} s for another sign of it",
                file=sys.stderr,
                flush=True,
            )
        while time.time() < until:
            time.sleep(LOOK_S)
            now = holder_of(self._workdir)
            if now is None:
                return
            if now != other:
                raise self._in_use(now)

    def _in_use(self, holder: Holder | None) -> UserError:
        who = "another process" if holder is None else holder.name
        return UserError(
            f"--workdir={self._workdir}: is in use, a run is going on in it ({who}); wait for it, end "
            "it, or give another --workdir"
        )

    def _beat(self) -> None:
        self._write(json.dumps({**asdict(self._me), "beat": time.time()}))

    def _write(self, text: str) -> None:
        """In place, so that no reader finds half of it; mounted buckets upload it at fsync."""
        os.pwrite(self._file, f"{text:{FILE_BYTES - 1}}\n".encode(), 0)
        os.fsync(self._file)

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_S):
            other = holder_of(self._workdir)
            if other is not None and other.run != self._me.run:
                self._taken_by = other
                return
            try:
                self._beat()
            except OSError:  # a full disk: the log will say so, and this must not end the run
                continue


def holder_of(workdir: Path) -> Holder | None:
    """Who wrote the last beat; None if the workdir is free, or nobody can be made out."""
    try:
        said = read_json(workdir / "run.lock", dict)
        return Holder(**said | {"beat": float(said["beat"])})
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return None


def _boot() -> str:
    """What tells this start of this machine's kernel from all others; containers share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
