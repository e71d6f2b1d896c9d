"""Measures export and import of a model: seconds, rate beside a plain copy, and peak memory."""

import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from nepa_jax import config as configs
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.weights import save_weights
from nepa_jax.export.folder import export
from nepa_jax.export.importing import import_checkpoint
from nepa_jax.objectives.base import abstract_model, load_objective

Result = dict[str, float | int | str]


def bench_export(config: ConfigDict) -> Result:
    """Export and import of the recipe's model with random weights, each in a fresh process.

    Memory is the peak less what the process has with its libraries imported, over the weights'
    size. Beside them the exported folder is copied. All three read from disk, not from the
    system's page cache (where it can be told to forget: not on macOS), and end on disk.
    """
    config = configs.resolve(config, num_examples=1_281_167, platform="cpu")
    name = config.objective.name.rpartition(".")[2]  # of the format that holds all of its weights
    with tempfile.TemporaryDirectory(prefix="nepa-jax-bench-") as folder:
        run, out, back, copy = (str(Path(folder) / part) for part in ("run", "out", "back", "copy"))
        size = _alone(write_random, run, config)
        exported = _alone(measured, export, run, name, out)
        copied = _alone(measured, shutil.copytree, out, copy)
        imported = _alone(measured, import_checkpoint, out, name, back)
    measures = {"export": exported, "copy": copied, "import": imported}
    result: Result = {"weights_gb": size / 1e9}
    for what, (seconds, peak) in measures.items():
        result[f"{what}_s"] = seconds
        result[f"{what}_gb_per_s"] = size / 1e9 / seconds
        if what != "copy":
            result[f"{what}_memory_over_size"] = peak / size
    return result


def _alone(function: Callable, *args: object):  # noqa: ANN202
    """The result of a call in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result()


def write_random(workdir: str, config: ConfigDict) -> int:
    """A checkpoint of random weights; returns their bytes."""
    shapes = abstract_model(load_objective(config.objective.name).init_model, config)
    rng = np.random.default_rng(0)
    leaves = {
        name: rng.standard_normal(leaf.shape, np.float32)
        for name, leaf in named_leaves(shapes).items()
    }
    save_weights(workdir, 1, with_leaves(shapes, leaves), Provenance.of(config, ""))
    return sum(leaf.nbytes for leaf in leaves.values())


def measured(function: Callable, source: str, *args: object) -> tuple[float, int]:
    """Seconds of a call until all is on disk, and bytes by which it raises this process's peak memory."""
    jax.devices()
    _forget(source)
    before = _peak_bytes()
    began = time.perf_counter()
    function(source, *args)
    os.sync()
    return time.perf_counter() - began, _peak_bytes() - before


def _forget(folder: str) -> None:
    """Drops a folder's files from the system's page cache."""
    os.sync()  # what is not on disk yet would stay
    for path in Path(folder).rglob("*"):
        if path.is_file() and hasattr(os, "posix_fadvise"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
