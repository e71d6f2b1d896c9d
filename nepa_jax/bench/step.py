"""Measures the compiled step, the loader, both together in the real loop, and saving."""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nepa_jax import config as configs
from nepa_jax.bench.guard import Product, guarded
from nepa_jax.bench.speed import REST_S
from nepa_jax.bench.torch_step import (
    NO_SIDES,
    OURS,
    Sides,
    check_comparable,
    compared,
    torch_sides,
)
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.saving import Checkpoints
from nepa_jax.data.loader import Loader
from nepa_jax.data.records import open_dataset
from nepa_jax.mesh import make_mesh, put_batch
from nepa_jax.objectives.base import Batch, load_objective
from nepa_jax.plan.chips import mfu
from nepa_jax.plan.hlo import read
from nepa_jax.plan.where import work_by_part
from nepa_jax.run.feed import DeviceBatches
from nepa_jax.run.goodput import Goodput
from nepa_jax.run.hooks import MetricsHook
from nepa_jax.run.metrics import Throughput
from nepa_jax.run.online import evaluation
from nepa_jax.run.report import NoReport
from nepa_jax.step import (
    TrainState,
    Update,
    abstract_batch,
    abstract_state,
    create_state,
    make_update,
    with_heads,
)
from nepa_jax.train import train

Result = dict[str, Any]
ROUNDS = 5
SECONDS_PER_ROUND = 2.0
PRODUCT = "product"


class FixedBatches:
    """One batch of noise, already on the devices: all that a step needs and no data."""

    def __init__(self, described: dict[str, jax.ShapeDtypeStruct], mesh: Mesh):
        rows = {name: np.zeros(each.shape, each.dtype) for name, each in described.items()}
        rows["image"][:] = np.random.default_rng(0).integers(0, 256, rows["image"].shape, np.uint8)
        self._batch = put_batch(rows, mesh)

    def batch(self, step: int) -> Batch:
        return self._batch


class Prepared(NamedTuple):
    """A compiled update with all that it takes, and the seconds it took to compile."""

    config: ConfigDict  # resolved
    mesh: Mesh
    state: TrainState
    update: Update
    fixed: FixedBatches
    compile_s: float


def _prepared(config: ConfigDict, labelled: bool = True) -> Prepared:
    objective = load_objective(config.objective.name)
    config = configs.resolve(config, num_examples=1_281_167, platform=jax.default_backend())
    mesh = make_mesh(config)
    batch = abstract_batch(config, labelled, mesh)
    target = with_heads(abstract_state(config, objective, mesh), config, objective)
    update = make_update(config, objective, target)
    lowered = update.lower(target, batch)
    began = time.perf_counter()
    compiled = replace(update, program=lowered.compile())
    compile_s = time.perf_counter() - began
    state, fixed = create_state(config, objective, target), FixedBatches(batch, mesh)
    return Prepared(config, mesh, state, compiled, fixed, compile_s)


def bench_step(config: ConfigDict, where: bool = False, against_torch: bool = False) -> Result:
    """The bare compiled update on a fixed batch: median rate, memory, compile time, MFU.

    ``where``: by part of the model, forward and backward, what the compiled program does: ``megacycles`` by
    the compiler's estimate where it gives one, else ``gflop`` of products and ``gib`` moved. On all devices
    alike, of one.

    ``against_torch``: beside it the same model, weights, batch and optimizer in PyTorch, in turns, with the
    ratios of our step's time to those of its forms.

    Raises:
        UserError: PyTorch is asked for and cannot do this step.
    """
    if against_torch:
        check_comparable(config)
    prepared = _prepared(config)
    config, update = prepared.config, prepared.update
    with ExitStack() as stack:
        theirs = _torch_sides(prepared, stack) if against_torch else NO_SIDES
        product = {PRODUCT: Product(config).run}
        rounds = _take_turns({OURS: _Bare(prepared).run, **product, **theirs.forms})
    step_s = statistics.median(each[OURS] for each in rounds)
    flops = load_objective(config.objective.name).describe(config).flops * config.data.batch_size
    program = update.program.as_text()
    share = mfu(flops / step_s, jax.devices()[0].device_kind, jax.device_count())
    return {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "compile_s": prepared.compile_s,
        "step_s": step_s,
        "images_per_s": config.data.batch_size / step_s,
        "model_tflops_per_s": flops / step_s / 1e12,
        "mfu": "peak of this device not known" if share is None else share,
        "peak_memory_gib": update.memory_analysis().peak_memory_in_bytes / 2**30,
        **guarded(config, _over_product(rounds, flops / jax.device_count()), program),
        **theirs.words,
        **compared(rounds),
        **({"where": work_by_part(read(program))} if where else {}),
    }


class _Bare:
    """The bare update again and again; the state goes on from call to call."""

    def __init__(self, prepared: Prepared):
        self._update, self._batch = prepared.update, prepared.fixed.batch(0)
        self.state = prepared.state

    def run(self, seconds: float) -> float:
        """Steps for some seconds; returns those of a step."""
        steps, elapsed, self.state = _run_bare(self._update, self.state, self._batch, seconds)
        return elapsed / steps


def _over_product(rounds: list[dict[str, float]], flops: float) -> float:
    """Median of the step's time over that of a matrix product of so many FLOPs, on each device."""
    return statistics.median(each[OURS] / (each[PRODUCT] * flops) for each in rounds)


def _torch_sides(prepared: Prepared, stack: ExitStack) -> Sides:
    images = np.asarray(prepared.fixed.batch(0)["image"])
    return torch_sides(prepared.config, prepared.state.model, images, stack)


def _take_turns(sides: dict[str, Callable[[float], float]]) -> list[dict[str, float]]:
    """Seconds of a step of every side in each round, after one that does not count.

    Between two sides nobody computes: threads of the last one may still wait for work, spinning.
    """
    rounds = []
    for _ in range(ROUNDS + 1):
        rounds.append({})
        for name, run in sides.items():
            time.sleep(REST_S if len(sides) > 1 else 0.0)
            rounds[-1][name] = run(SECONDS_PER_ROUND)
    return rounds[1:]


def _run_bare(
    update: Update, state: TrainState, batch: Batch, seconds: float
) -> tuple[int, float, TrainState]:
    """Steps one after the other for a while, waiting only at the end: steps, seconds, state."""
    steps, began = 0, time.perf_counter()
    previous = None
    while steps == 0 or time.perf_counter() - began < seconds:
        state, metrics = update(state, batch)
        jax.block_until_ready(previous)
        previous, steps = metrics, steps + 1
    jax.block_until_ready(previous)
    return steps, time.perf_counter() - began, state


def bench_online(config: ConfigDict) -> Result:
    """What it costs to watch a run (``evals.online``): its steps with linear heads and without, in turns.

    ``heads_over_step`` is what the heads add to a step, as a share: the median of the rounds. Where the
    config names data, ``evaluation_s`` is the time of kNN and RankMe once, after one that compiles, and
    ``evaluation_over_steps`` its share of the ``evals.every_steps`` steps between two.
    """
    config = ConfigDict(config.to_dict())
    config.evals.online = True
    on = _prepared(config)
    config, objective = on.config, load_objective(config.objective.name)
    bare = create_state(config, objective, abstract_state(config, objective, on.mesh))
    sides = {"on": _Bare(on), "off": _Bare(on._replace(state=bare))}
    rounds = _take_turns({name: side.run for name, side in sides.items()})
    step_s = statistics.median(each["off"] for each in rounds)
    found = {
        "step_s": step_s,
        "heads_over_step": statistics.median(each["on"] / each["off"] for each in rounds) - 1,
    }
    if not config.data.path:
        return found
    records = open_dataset(config.data.path, config.data.split)
    evaluate = evaluation(config, objective, on.mesh, records, Goodput(Path("unwritten")))
    evaluate(sides["on"].state)
    began = time.perf_counter()
    evaluate(sides["on"].state)
    took = time.perf_counter() - began
    return found | {
        "evaluation_s": took,
        "evaluation_over_steps": took / (config.evals.every_steps * step_s),
    }


def bench_checkpoint(config: ConfigDict) -> Result:
    """What saving costs the loop: how long it blocks, beside how long the save takes in all.

    ``share_of_run`` is the blocked time over that of ``checkpoint.every_steps`` steps.
    """
    config, _, state, update, fixed, _ = _prepared(config)
    steps, elapsed, state = _run_bare(update, state, fixed.batch(0), SECONDS_PER_ROUND)
    blocked, whole = [], []
    with tempfile.TemporaryDirectory(prefix="nepa-jax-bench-") as folder, Checkpoints(folder) as to:
        for step in range(1, ROUNDS + 2):
            began = time.perf_counter()
            to.save(step, state, Provenance.of(config, "no data"))
            blocked.append(time.perf_counter() - began)
            to.wait()
            whole.append(time.perf_counter() - began)
    blocked_s, save_s = statistics.median(blocked[1:]), statistics.median(whole[1:])
    return {
        "state_gib": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 2**30,
        "save_s": save_s,
        "blocked_s": blocked_s,
        "share_of_save": blocked_s / save_s,
        "share_of_run": blocked_s / (config.checkpoint.every_steps * elapsed / steps),
    }


def bench_e2e(config: ConfigDict) -> Result:
    """The real loop against the bare step, in alternation: what loop and input pipeline cost.

    ``loop_overhead`` is the loop's step time on a fixed batch over the bare step's, less one;
    ``data_overhead`` the same for the loop fed by the loader.
    """
    with ExitStack() as stack:
        data, loader = configs.loader_config(config), None
        if data.path:
            loader = stack.enter_context(Loader(data))
        labelled = loader is None or loader.records.labelled
        _, mesh, state, update, fixed, _ = _prepared(config, labelled)
        feeds: dict[str, Any] = {"loop": fixed}
        if loader is not None:
            feeds["data"] = stack.enter_context(DeviceBatches(loader, mesh))
        steps, _, state = _run_bare(update, state, fixed.batch(0), SECONDS_PER_ROUND)
        seconds: dict[str, list[float]] = {name: [] for name in ("bare", *feeds)}
        for start in range(0, ROUNDS * steps, steps):
            done, elapsed, state = _run_bare(update, state, fixed.batch(0), SECONDS_PER_ROUND)
            seconds["bare"].append(elapsed / done)
            for name, feed in feeds.items():
                elapsed, state = _run_loop(update, state, feed, range(start, start + steps))
                seconds[name].append(elapsed / steps)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    overheads = {f"{name}_overhead": medians[name] / medians["bare"] - 1 for name in feeds}
    return {f"{name}_step_s": value for name, value in medians.items()} | overheads


def _run_loop(
    update: Update, state: TrainState, feed: Any, steps: range
) -> tuple[float, TrainState]:
    """The training loop with its metrics hook, reporting to nowhere: seconds, state."""
    throughput = Throughput(1, 0.0, lambda: 0.0)
    hook = MetricsHook(10, throughput, lambda step, scalars: None, NoReport())
    began = time.perf_counter()
    state = train(state, update, feed, [hook], steps, lambda step: False)
    hook.close(state)
    return time.perf_counter() - began, state
