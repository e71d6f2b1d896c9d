"""How fast something makes batches, on a machine that may do other work: measured from rest to rest."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

ROUNDS = 3
IMAGES = 400  # per measurement, at least
REST_S = 0.5  # in which nothing is computed: at rest
WALL, CPU = "images_per_s", "images_per_cpu_s"

Speed = dict[str, float]  # by WALL, and by CPU: the seconds of this process and its workers


@dataclass(frozen=True)
class Side:
    """Something that makes batches, without end."""

    batches: Iterator[Any]
    batch_size: int
    ahead: int = 0  # how many it makes before they are asked for, at most

    def draw(self, num_batches: int) -> None:
        for _ in islice(self.batches, num_batches):
            pass


def take_turns(sides: dict[str, Side]) -> list[dict[str, Speed]]:
    """The speeds of all sides in each round, after one that does not count."""
    rounds = [{name: measure(side) for name, side in sides.items()} for _ in range(ROUNDS + 1)]
    return rounds[1:]


def measure(side: Side) -> Speed:
    """From rest to rest: with all batches ahead made before and after, as many are made as are
    taken, which makes the CPU time exact. The wall time begins when none is ahead any more.
    """
    num_batches = -(-IMAGES // side.batch_size)
    settle()
    cpu = cpu_seconds()
    side.draw(side.ahead)
    wall = time.perf_counter()
    side.draw(num_batches)
    wall = time.perf_counter() - wall
    settle()
    cpu = cpu_seconds() - cpu
    made = side.ahead + num_batches
    return {WALL: num_batches * side.batch_size / wall, CPU: made * side.batch_size / cpu}


def settle() -> None:
    """Waits until this process and its workers have nothing to do."""
    used = -1.0
    while cpu_seconds() - used > 0.02:
        used = cpu_seconds()
        time.sleep(REST_S)


def cpu_seconds() -> float:
    """CPU time so far of this process and of the worker processes it has now."""
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{child.pid}/stat") for child in multiprocessing.active_children()]
    fields = [file.read_text().rsplit(")", 1)[1].split() for file in stats]
    return time.process_time() + sum((int(f[11]) + int(f[12])) / ticks for f in fields)
