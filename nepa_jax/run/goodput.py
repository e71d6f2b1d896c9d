"""Where a run's wall-clock time went, over all its starts.

Goodput is the share of the time since the first start that was spent in steps that count: not in
starting, compiling, waiting for data, waiting for checkpoints, nor in steps that were lost and done
again, nor between a stop and the next start.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nepa_jax.base.errors import writing
from nepa_jax.base.text import read_json

# What a start spends its time on; the rest of its time is steps.
OVERHEADS = ("start", "restore", "compile", "data", "checkpoint", "evaluation")


@dataclass
class Start:
    """One start of the run's command, in seconds since the epoch and steps done."""

    began: float
    ended: float
    first_step: int
    last_step: int
    seconds: dict[str, float] = field(default_factory=dict)  # by overhead
    saved_step: int = 0  # of the newest complete checkpoint


class Goodput:
    """Keeps ``WORKDIR/goodput.json``: a list of starts, the last of which is this one."""

    def __init__(self, path: Path):
        self._path = path
        self._former = read_starts(path)
        self._this = Start(time.time(), time.time(), 0, 0)
        self._waited_s: Callable[[], float] = float

    def begin(self, step: int, waited_s: Callable[[], float]) -> None:
        """The loop begins at a step: what was not spent otherwise was the start.

        Args:
            step: the one to go on from.
            waited_s: how long the loop has waited for data so far.
        """
        self._waited_s = waited_s
        self._this.first_step = self._this.last_step = step
        self.spend("start", time.time() - self._this.began - sum(self._this.seconds.values()))

    def spend(self, overhead: str, seconds: float) -> None:
        """Adds to one of the overheads."""
        self._this.seconds[overhead] = self._this.seconds.get(overhead, 0.0) + seconds

    @contextmanager
    def spent(self, overhead: str) -> Iterator[None]:
        """Adds the time of a block to one of the overheads."""
        began = time.perf_counter()
        yield
        self.spend(overhead, time.perf_counter() - began)

    @property
    def former_saved_step(self) -> int:
        """Of the newest checkpoint that former starts are known to have made; 0: none."""
        return max((start.saved_step for start in self._former), default=0)

    def write(self, step: int, saved_step: int = 0) -> dict[str, float]:
        """Saves the account up to a step; returns what the training log gets."""
        self._this.last_step, self._this.ended = step, time.time()
        self._this.saved_step = max(saved_step, self._this.saved_step)
        self._this.seconds["data"] = self._waited_s()
        starts = [*self._former, self._this]
        replacement = self._path.with_suffix(".tmp")
        with writing(self._path):
            replacement.write_text(json.dumps([asdict(start) for start in starts], indent=1) + "\n")
            replacement.replace(self._path)
        return {f"goodput/{name}": share for name, share in shares(starts).items()}

    def summary(self) -> str:
        """One line for the end of a run."""
        starts = [*self._former, self._this]
        share = shares(starts)
        rest = [f"{name} {100 * share[name]:.1f} %" for name in share if name != "steps"]
        parts = ", ".join(part for part in rest if not part.endswith(" 0.0 %"))
        hours = (self._this.ended - starts[0].began) / 3600
        return (
            f"{hours:.2f} h since the first of {len(starts)} start(s), {100 * share['steps']:.1f} % of "
            f"it in steps that count (goodput){'; ' if parts else ''}{parts}"
        )


def shares(starts: list[Start]) -> dict[str, float]:
    """What part of the time from the first start to now went where; they add up to 1.

    ``steps`` counts; ``lost`` steps were done again after a restart; ``away``: no process ran.
    """
    total = starts[-1].ended - starts[0].began
    spent = {name: sum(s.seconds.get(name, 0.0) for s in starts) for name in OVERHEADS}
    lost = sum(map(_lost, starts[:-1], starts[1:]))
    running = sum(start.ended - start.began for start in starts)
    steps = running - sum(spent.values()) - lost
    seconds = {"steps": steps} | spent | {"lost": lost, "away": total - running}
    return {name: value / max(total, 1e-9) for name, value in seconds.items()}


def _lost(start: Start, following: Start) -> float:
    """Seconds in the steps of a start that the following one does again."""
    again = max(start.last_step - following.first_step, 0)
    in_steps = start.ended - start.began - sum(start.seconds.values())
    return in_steps * min(again / max(start.last_step - start.first_step, 1), 1.0)


def read_starts(path: Path) -> list[Start]:
    """The starts so far; none where the file is not what this wrote: the account begins anew."""
    try:
        starts = [Start(**start) for start in read_json(path, list)]
        shares([*starts, Start(time.time(), time.time(), 0, 0)])  # TypeError: text for a number
        sum(start.saved_step for start in starts)
        return starts
    except (OSError, ValueError, TypeError, AttributeError, OverflowError):
        return []
