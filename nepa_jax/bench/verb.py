"""What can be measured, and how the figures are shown."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from ml_collections import ConfigDict

from nepa_jax.bench.data import bench_data
from nepa_jax.bench.evals import bench_features
from nepa_jax.bench.export import bench_export
from nepa_jax.bench.heads import bench_heads
from nepa_jax.bench.step import bench_checkpoint, bench_e2e, bench_online, bench_step
from nepa_jax.bench.torch_step import prefer_sharing
from nepa_jax.plan.checks import check_step
from nepa_jax.plan.where import lines_of

MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "step": bench_step,
    "data": bench_data,
    "e2e": bench_e2e,
    "checkpoint": bench_checkpoint,
    "export": bench_export,
    "features": bench_features,
    "heads": bench_heads,
    "online": bench_online,
}

# What the numbers are: unit, and a word.
MEANINGS = {
    "device": ("", "devices × kind"),
    "compile_s": ("s", "to compile the step, once"),
    "step_s": ("s", "of a step on the devices, median"),
    "images_per_s": ("images/s", "through that step"),
    "model_tflops_per_s": ("TFLOP/s", "useful work: no recomputation counted"),
    "mfu": ("", "share of the devices' peak that is useful work"),
    "peak_memory_gib": ("GiB", "of each device, by the compiled program"),
    "over_product": ("", "step_s over the time of a matrix product of the same FLOPs"),
    "guard": ("", "what that says of this jax"),
    "many_axes": ("", "tried in a process of its own"),
    "torch": ("", "in a process of its own, in turns with ours"),
    "torch_eager_step_s": ("s", "of the same step in PyTorch, median"),
    "torch_compiled_step_s": ("s", "of it by torch.compile, median"),
    "over_torch_eager": ("", "our step's time over PyTorch's, eager; below 1: ours is faster"),
    "over_torch_compiled": ("", "our step's time over PyTorch's, compiled"),
    "bare_step_s": ("s", "of a step alone, median"),
    "loop_step_s": ("s", "in the training loop, on one batch again and again"),
    "data_step_s": ("s", "in the training loop, fed by the loader"),
    "loop_overhead": ("", "what the loop adds to a step, as a share; below 0 is noise"),
    "data_overhead": ("", "what loop and loader add to a step, as a share; below 0 is noise"),
    "heads_over_step": ("", "what linear heads add to a step, as a share; below 0 is noise"),
    "evaluation_s": ("s", "of kNN and RankMe once"),
    "evaluation_over_steps": ("", "the same over the evals.every_steps steps between two"),
    "state_gib": ("GiB", "of parameters, optimizer and average"),
    "save_s": ("s", "of a save, until it is on disk"),
    "blocked_s": ("s", "of it in which training stands still"),
    "share_of_save": ("", "the one over the other"),
    "share_of_run": ("", "of the time that saving costs, at checkpoint.every_steps"),
    "weights_gb": ("GB", "of weights"),
    "bare_images_per_s": ("images/s", "through the encoder alone, its last layer"),
    "features_images_per_s": ("images/s", "from records to vectors of every layer, two poolings"),
    "features_over_bare": ("", "the one over the other"),
    "knn": ("", "nearest neighbours"),
    "knn_s": ("s", "of all settings, compiling among them"),
    "heads": ("", "linear probes side by side, on stored features"),
    "disk_read_s": ("s", "of an epoch that only reads, nothing of it in memory before"),
    "disk_train_s": ("s", "of an epoch that trains, the same"),
    "disk_train_over_read": ("", "the one over the other"),
    "memory_read_s": ("s", "of an epoch that only reads, all in memory that fits"),
    "memory_train_s": ("s", "of an epoch that trains, the same"),
    "memory_train_over_read": ("", "the one over the other"),
}
# Of a number whose name ends in it, as those of an export.
UNITS = {"_gb_per_s": "GB/s of weights", "_memory_over_size": "times the weights", "_s": "s"}

Row = tuple[str, str, str]


def measure(what: str, config: ConfigDict, **options: bool) -> dict[str, Any]:
    """The figures of one of ``MEASURES``, which know its options; most need no data.

    Raises:
        UserError: a mistake in the config, or the data set is needed and cannot be read.
    """
    if options.get("against_torch"):
        prefer_sharing()
    check_step(config, jax.device_count())
    return MEASURES[what](config, **options)


def table_of(result: dict[str, Any]) -> str:
    """A result for people: each number with its unit and a word, a line each; then its tables."""
    result = dict(result)
    tables = result.pop("where", {})
    rows = [*(_rows_of_data(result) if "rates" in result else map(_row, result.items()))]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = (f"{name:{widths[0]}}  {text:{widths[1]}}  {meaning}" for name, text, meaning in rows)
    parts = (line for unit, table in tables.items() for line in ("", *lines_of(table, unit)))
    return "\n".join(line.rstrip() for line in (*lines, *parts))


def _row(figure: tuple[str, float | int | str]) -> Row:
    name, value = figure
    ending = next((unit for ending, unit in UNITS.items() if name.endswith(ending)), "")
    unit, meaning = MEANINGS.get(name, (ending, ""))
    number = f"{value:,.4g}" if isinstance(value, float) else f"{value}"
    return name, f"{number} {unit}".rstrip(), meaning


def _rows_of_data(result: dict[str, Any]) -> Iterator[Row]:
    before, after = result["load_average"]
    yield "cores", f"{result['cores']}", f"load {before:.1f} before and {after:.1f} after"
    for name, rate in result["rates"].items():
        per_cpu = f"{rate['images_per_cpu_s']:.0f} images per CPU s"
        yield name, f"{rate['images_per_s']:.0f} images/s", per_cpu
    for name, ratio in result["ratios"].items():
        yield name, f"{ratio:.2f}", "" if name.endswith(", wall") else "of images per CPU s"
    for name, seconds in result["start_s"].items():
        yield f"first batch, {name}", f"{seconds:.2f} s", ""
    for name, size in result["worker_mib"].items():
        yield f"memory per worker, {name}", f"{size:.0f} MiB", ""
