"""Measures the grid of linear probes on stored features against reading those features."""

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from nepa_jax.base.progress import progress
from nepa_jax.evals.heads import grids
from nepa_jax.evals.heads.rows import SEED, Ahead, Stored
from nepa_jax.evals.heads.train import Plan, compiled_update
from nepa_jax.evals.linear import USUAL, design_of
from nepa_jax.mesh import side_by_side

IMAGES = 100_000
CLASSES = 10
RATES = tuple(np.geomspace(0.3, 300.0, 10).tolist())


def bench_heads(config: ConfigDict) -> dict[str, Any]:
    """Seconds of an epoch of linear probes, of every layer at ten rates, and of reading alone.

    Vectors are noise, of the width and the layers of the config's model: 3.7 GB in the temporary
    folder at 12 layers of 768. ``disk``: nothing of them is in memory before; ``memory``: all that fits.

    Args:
        config: of a run; only ``model.depth`` and ``model.embed_dim`` matter.
    """
    depth, dim = config.model.depth, config.model.embed_dim
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, IMAGES, np.int32)
    with tempfile.TemporaryDirectory(prefix="nepa-jax-heads-") as folder:
        files = [Path(folder, f"{layer:02}.npy") for layer in range(depth)]
        for file in progress(files, depth, "write noise"):
            np.save(file, rng.standard_normal((IMAGES, dim), np.float32))
        grid = _Grid(files, labels)
        grid.epoch(train=True)  # compiles
        disk = {train: grid.epoch(train, forgotten=True) for train in (False, True)}
        memory = {train: grid.epoch(train) for train in (False, True)}
    return {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "heads": f"{depth} layers × {len(RATES)} rates, {IMAGES:,} images, {CLASSES} classes",
        "disk_read_s": disk[False],
        "disk_train_s": disk[True],
        "disk_train_over_read": disk[True] / disk[False],
        "memory_read_s": memory[False],
        "memory_train_s": memory[True],
        "memory_train_over_read": memory[True] / memory[False],
    }


class _Grid:
    """The features and the compiled step."""

    def __init__(self, files: list[Path], labels: np.ndarray) -> None:
        self._files, self._labels, self._mesh = files, labels, side_by_side()
        dim = np.load(files[0], mmap_mode="r").shape[1]
        self._design = design_of(dim, CLASSES)
        self._plan = Plan(len(files), RATES, 1, IMAGES // USUAL.batch_size, 0)
        self._update = compiled_update(self._design, self._plan, self._mesh)

    def epoch(self, train: bool, forgotten: bool = False) -> float:
        """Seconds of an epoch that trains heads, or only puts its rows on the devices."""
        os.sync()
        for file in self._files:
            if forgotten:
                _forget(file)
        layers = [np.load(file, mmap_mode="r") for file in self._files]
        stored = Stored(layers, self._labels, np.arange(IMAGES), self._mesh)
        grid = grids.init_grid(self._design, len(layers), len(RATES), SEED)
        rows_of = Ahead(partial(stored.shuffled, USUAL.batch_size))
        began = time.perf_counter()
        for step in range(self._plan.total_steps):
            rows = jax.block_until_ready(rows_of(step))
            if train:
                grid = jax.block_until_ready(self._update(grid, np.int32(step), rows))
        seconds = time.perf_counter() - began
        rows_of.close()
        return seconds


def _forget(file: Path) -> None:
    """The system is to read it from the disk again; where it cannot be told so, it may not."""
    if not hasattr(os, "posix_fadvise"):
        return
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
