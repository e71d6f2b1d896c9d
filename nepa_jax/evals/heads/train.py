"""Trains a grid of heads, epoch by epoch, and scores each on the test split after every one.

What was done is kept on every host after an epoch, so that the same evaluation, killed and started
again, goes on there and ends the same.
"""

import contextlib
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from nepa_jax.base.private import private_folder
from nepa_jax.base.progress import meter, warn
from nepa_jax.evals.heads import grids
from nepa_jax.evals.heads.grids import Design, Found, Head, Rows, Schedule
from nepa_jax.evals.heads.rows import SEED, Ahead
from nepa_jax.hosts.agree import exchange, say
from nepa_jax.mesh import replicated

KEEP_EVERY_S = 60.0
KEPT_S = 7 * 24 * 3600.0  # after which what is kept of an evaluation is dropped


class Feed(NamedTuple):
    """How a step gets its rows: ``put`` runs ahead in a thread, ``rows`` on all hosts in order."""

    put: Callable[[int], Any]
    rows: Callable[[Any], Rows] = lambda rows: rows


@dataclass(frozen=True)
class Plan:
    """How long heads are trained, and by which peak rates."""

    num_layers: int
    rates: tuple[float, ...]
    epochs: int
    steps_per_epoch: int
    warmup_steps: int

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class Scores(NamedTuple):
    """Shares of images that every head classifies right: float64 [epochs, layers, rates] each."""

    top1: np.ndarray
    top5: np.ndarray


class Trained(NamedTuple):
    """What training gives."""

    grid: Head
    test: Scores
    labels: np.ndarray  # float64 [classes], images of each class in the test split


def train(
    design: Design,
    plan: Plan,
    feed: Feed,
    test: Callable[[], Iterable[Rows]],
    mesh: Mesh,
    facts: Mapping[str, Any],
) -> Trained:
    """Trains all heads side by side.

    Args:
        design: of the heads.
        plan: how long.
        feed: of the training rows.
        test: the rows of the test split, once through.
        mesh: of all devices; rows are spread over them, heads are whole on each.
        facts: all that decides the result; what is kept of a killed evaluation goes by them.
    """
    start = partial(grids.init_grid, design, plan.num_layers, len(plan.rates), SEED)
    kept = Kept(facts)
    grid, found = kept.read(jax.jit(start, out_shardings=replicated(mesh))())
    update = compiled_update(design, plan, mesh)
    if found:
        say(f"heads: {len(found)} of {plan.epochs} epochs are done already, and are used again")
    rows_of, done = Ahead(feed.put), len(found) * plan.steps_per_epoch
    with contextlib.closing(rows_of), meter(plan.total_steps, "train heads", done) as advance:
        for epoch in range(len(found), plan.epochs):
            first = epoch * plan.steps_per_epoch
            for step in range(first, first + plan.steps_per_epoch):
                rows = feed.rows(rows_of(step))
                grid = jax.block_until_ready(update(grid, np.int32(step), rows))
                advance(1)
            found.append(measure(design, grid, test(), mesh))
            kept.write(grid, found, last=epoch + 1 == plan.epochs)
    return Trained(grid, shares(found), np.asarray(found[-1].labels))


def measure(design: Design, grid: Head, rows: Iterable[Rows], mesh: Mesh) -> Found:
    """What a grid makes of all rows, float64 on the host."""
    sums = None
    for batch in rows:
        found = _evaluated(design, replicated(mesh), grid, batch)
        found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), found)
        sums = found if sums is None else jax.tree.map(np.add, sums, found)
    return sums


@partial(jax.jit, static_argnums=(0, 1))
def _evaluated(design: Design, whole: NamedSharding, grid: Head, rows: Rows) -> Found:
    """On every device whole."""
    return jax.lax.with_sharding_constraint(grids.evaluate_grid(design, grid, rows), whole)


def shares(found: list[Found]) -> Scores:
    """Of counts by epoch the shares."""
    count = found[-1].labels.sum()
    return Scores(*(np.stack([getattr(f, name) for f in found]) / count for name in Scores._fields))


def compiled_update(
    design: Design, plan: Plan, mesh: Mesh
) -> Callable[[Head, jax.Array, Rows], Head]:
    """One step of the whole grid; the grid that goes in is donated."""
    schedule = Schedule(plan.warmup_steps, plan.total_steps)

    def update(grid: Head, step: jax.Array, rows: Rows) -> Head:
        rates = jnp.array(plan.rates) * schedule(step)
        return grids.update_grid(design, grid, rows, rates)[0]

    return jax.jit(update, donate_argnums=0, out_shardings=replicated(mesh))


class Kept:
    """What an evaluation has done so far: one file on every host, ``~/.cache/nepa_jax/heads/KEY.npz``.

    Hosts that have not kept the same epochs begin anew together.
    """

    def __init__(self, facts: Mapping[str, Any]) -> None:
        text = json.dumps(facts, sort_keys=True, default=str)
        folder = private_folder("heads")
        for file in folder.iterdir():
            with contextlib.suppress(OSError):  # another process may drop it as well
                if time.time() - file.stat().st_mtime > KEPT_S:
                    file.unlink()
        self.file: Path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.npz"
        self._written = time.monotonic()

    def read(self, grid: Head) -> tuple[Head, list[Found]]:
        """The heads, and what each epoch found; the grid as it is and [] where nothing was kept."""
        try:
            with np.load(self.file) as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):  # not there, or damaged
            arrays = {}
        leaves, tree = jax.tree.flatten(grid)
        kept = [arrays.get(f"leaf{i}") for i in range(len(leaves))]
        fits = all(
            k is not None and k.shape == leaf.shape for k, leaf in zip(kept, leaves, strict=True)
        )
        epochs = len(arrays["top1"]) if fits else 0  # it may be of another version of the code
        if jax.distributed.is_initialized() and len(set(exchange(str(epochs)))) > 1:
            epochs = 0
        if not epochs:
            return grid, []
        placed = [_like(values, leaf) for values, leaf in zip(kept, leaves, strict=True)]
        found = [Found(*row) for row in zip(*(arrays[n] for n in Found._fields), strict=True)]
        return jax.tree.unflatten(tree, placed), found

    def write(self, grid: Head, found: list[Found], last: bool) -> None:
        """Keeps what was done, now and then, and at the end; the file is whole or not there."""
        if not last and time.monotonic() - self._written < KEEP_EVERY_S:
            return
        leaves = {f"leaf{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(grid))}
        scores = {n: np.stack([getattr(f, n) for f in found]) for n in Found._fields}
        unfinished = self.file.with_suffix(f".{os.getpid()}.tmp")
        self._written = time.monotonic()
        try:
            with unfinished.open("wb") as file:
                np.savez(file, **leaves, **scores)
            unfinished.replace(self.file)
        except OSError as error:  # nothing is lost but time, if it is killed
            warn(
                f"{self.file}: cannot be written ({error.strerror}): a killed evaluation begins anew"
            )
            unfinished.unlink(missing_ok=True)


def _like(values: np.ndarray, leaf: jax.Array) -> jax.Array:
    """The values where a leaf lies; every host has them all."""
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: values[index])
