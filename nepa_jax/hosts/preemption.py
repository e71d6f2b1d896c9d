"""Asked to stop: whatever asks, the run saves first."""

import os
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

SAME_NOTICE_S = 1.0  # supervisors signal a process and its group: that is one notice

# Ctrl-C, the terminal or the ssh session that is gone, and what launchers and platforms send.
NOTICES = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


class Preemption:
    """Whether the run was asked to stop: by Ctrl-C, SIGHUP, SIGTERM, or a platform's notice.

    The first notice makes ``requested`` true; a second one ends the process at once, as the signal
    would have. Cloud TPUs turn a maintenance notice into SIGTERM where Autocheckpoint is enabled;
    Kubernetes, SLURM and the shutdown of a machine send it anyway. What the parent ignores (nohup,
    shells that start jobs in the background) stays ignored.

    Several processes: jax's preemption service took SIGTERM over when the run started, and the
    other signals are passed on to it. A notice to any process makes ``requested`` true on all at
    one step, the first that none has passed.
    """

    def __init__(self) -> None:
        self._noticed_at: float | None = None
        self._former: dict[signal.Signals, Any] = {}

    def requested(self, step: int) -> bool:
        """Whether to save and stop now; all processes must ask at every step, with its number."""
        if jax.distributed.is_initialized():
            return multihost_utils.reached_preemption_sync_point(step)
        return self.noticed

    @property
    def noticed(self) -> bool:
        """Whether this process was asked; of several, others may not know yet."""
        return self._noticed_at is not None

    def __enter__(self) -> "Preemption":
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            together = jax.distributed.is_initialized()
            for number in NOTICES[:2] if together else NOTICES:
                # None: one that another library set, which Python could not put back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._former[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        now, name = time.monotonic(), signal.Signals(number).name
        if self._noticed_at is None:
            self._noticed_at = now
            _tell(f"\n{name}: saving, then stopping; a second one ends at once\n")
            if jax.distributed.is_initialized():
                os.kill(os.getpid(), signal.SIGTERM)  # to jax's preemption service
        elif now - self._noticed_at > SAME_NOTICE_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _tell(text: str) -> None:
    """Not print, which the signal may have interrupted."""
    with suppress(OSError):  # the terminal is gone
        os.write(2, text.encode())
