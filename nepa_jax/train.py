"""Pretraining: set up, loop, finish. The same command resumes."""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nepa_jax import config as configs
from nepa_jax.checkpoint import Checkpoints, check_same_run
from nepa_jax.data.loader import Loader, LoaderConfig
from nepa_jax.errors import UserError
from nepa_jax.hooks import CheckpointHook, Hook, MetricsHook, Report, skip_guard
from nepa_jax.loading import load_weights
from nepa_jax.mesh import batch_sharding, host_part, make_mesh, put_batch
from nepa_jax.metrics import JsonlWriter, Scalars, TensorBoardWriter, Throughput, Writer
from nepa_jax.objectives.base import Batch, Objective, load_objective
from nepa_jax.saved import Provenance
from nepa_jax.step import TrainState, Update, abstract_state, create_state, make_update


def pretrain(config: ConfigDict, workdir: str, stop_step: int | None = None) -> TrainState:
    """Runs a config to its last step, from the newest checkpoint in ``workdir`` if there is one.

    Args:
        config: as a recipe gives it, overrides applied, units not yet resolved.
        workdir: gets ``config.json``, ``metrics.jsonl`` and ``checkpoints/``.
        stop_step: stop early, at a checkpoint of this step, without changing the schedule.

    Raises:
        UserError: a mistake in the config, the data set or the workdir, before any compilation.
    """
    with ExitStack() as stack:
        run = set_up(config, workdir, stack)
        stop = min(run.config.schedule.total_steps, stop_step or run.config.schedule.total_steps)
        state = run.initial_state()
        start = int(state.step)
        (run.workdir / "config.json").write_text(configs.to_json(run.config))
        if start >= stop:
            say(f"nothing to do: step {start} of {stop} is reached")
            return state
        update = run.compiled_update()
        data = stack.enter_context(DeviceBatches(run.loader, run.mesh))
        hooks = stack.enter_context(run.hooks(data, start, stop))
        return train(state, update, data, hooks, start, stop)


def train(
    state: TrainState,
    update: Update,
    data: "DeviceBatches",
    hooks: Sequence[Hook],
    start: int,
    stop: int,
) -> TrainState:
    """The loop. Nothing in it waits for the device; see MetricsHook for when metrics are read."""
    for step in range(start, stop):
        batch = data.batch(step)
        with jax.transfer_guard("disallow"):
            state, metrics = update(state, batch)
        for hook in hooks:
            hook(step + 1, state, metrics)
    return state


class DeviceBatches:
    """Batches on the devices; the next one is loaded and sent while a step runs."""

    def __init__(self, loader: Loader, mesh: Mesh):
        self._loader = loader
        self._mesh = mesh
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="device_batches")
        self._next: tuple[int, Future[Batch]] | None = None
        self.waited_s = 0.0  # in all

    def batch(self, step: int) -> Batch:
        """The global batch of a step: ``image`` uint8 [B, H, W, C] and ``label`` if there is one."""
        began = time.perf_counter()
        ahead, self._next = self._next, None
        future = ahead[1] if ahead and ahead[0] == step else self._pool.submit(self._load, step)
        batch = future.result()
        self._next = step + 1, self._pool.submit(self._load, step + 1)
        self.waited_s += time.perf_counter() - began
        return batch

    def _load(self, step: int) -> Batch:
        rows = self._loader.batch(step)
        rows.pop("index")
        return put_batch(rows, self._mesh)

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class Run:
    """Everything of a run that is settled before the first step."""

    config: ConfigDict  # resolved
    objective: Objective
    loader: Loader
    mesh: Mesh
    workdir: Path
    checkpoints: Checkpoints
    provenance: Provenance

    def initial_state(self) -> TrainState:
        """Restored from the newest sound checkpoint, begun with given weights, or initialised.

        Raises:
            UserError: the checkpoints are of another run, or the weights of another model.
        """
        target = abstract_state(self.config, self.objective, self.mesh)
        check = partial(check_same_run, current=self.provenance, workdir=str(self.workdir))
        resumed = self.checkpoints.restore_latest(target, check)
        if resumed is not None:
            changes = check(resumed.provenance)
            with_changes = f", with {'; '.join(changes)}" if changes else ""
            say(f"resuming at step {int(resumed.state.step)}{with_changes}")
            return resumed.state
        state = create_state(self.config, self.objective, self.mesh)
        source = self._first_weights()
        return begin_with(source, state) if source else state

    def _first_weights(self) -> str:
        """Where the weights of step 0 come from; "" if from the seed."""
        imported = str(self.workdir) if self.checkpoints.hold_weights() else ""
        if imported and self.config.run.init_from:
            raise UserError(
                f"run.init_from = {self.config.run.init_from}: the workdir {imported} holds imported "
                "weights already; leave one of them out"
            )
        return imported or self.config.run.init_from

    def compiled_update(self) -> Update:
        """The update, compiled for this run's shapes before any data is read."""
        began = time.perf_counter()
        state = abstract_state(self.config, self.objective, self.mesh)
        update = make_update(self.config, self.objective, self.mesh)
        compiled = update.lower(state, self._abstract_batch()).compile()
        say(f"compiled the step in {time.perf_counter() - began:.1f} s")
        return compiled

    def _abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        data, sharding = self.loader.config, batch_sharding(self.mesh)
        images = (data.batch_size, *data.image_size, data.channels)
        batch = {"image": jax.ShapeDtypeStruct(images, np.uint8, sharding=sharding)}
        for name in ("row", "label") if self.loader.records.labelled else ("row",):
            batch[name] = jax.ShapeDtypeStruct(images[:1], np.int32, sharding=sharding)
        return batch

    @contextmanager
    def hooks(self, data: DeviceBatches, start: int, stop: int) -> Iterator[list[Hook]]:
        """Logging, guarding and saving; closed in order when the run ends well."""
        config = self.config
        flops = self.objective.describe(config).flops
        throughput = Throughput(config.data.batch_size, flops, lambda: data.waited_s)
        report = Report(self._writers(start), start, config.schedule.total_steps)
        guard = skip_guard(config.run.max_skipped_steps, self.loader.indices)

        def report_all(step: int, scalars: Scalars) -> None:
            report(step, {**scalars, **self.loader.stats()})

        hooks = [
            MetricsHook(config.log.every_steps, throughput, guard, report_all),
            CheckpointHook(config.checkpoint.every_steps, stop, self.checkpoints, self.provenance),
        ]
        try:
            yield hooks
            for hook in hooks:
                hook.close()
        finally:
            report.close()

    def _writers(self, start: int) -> list[Writer]:
        if jax.process_index() != 0:
            return []
        writers: list[Writer] = [JsonlWriter(self.workdir / "metrics.jsonl", start)]
        if self.config.log.tensorboard:
            writers.append(TensorBoardWriter(self.workdir / "tensorboard", start))
        return writers


def set_up(config: ConfigDict, workdir: str, stack: ExitStack) -> Run:
    """Checks everything that can be wrong, opens data and workdir, and says what will be done."""
    objective = load_objective(config.objective.name)
    configs.validate(config, getattr(objective, "problems", None))
    folder = writable_folder(workdir)
    keep_compiled_programs(folder)
    mesh = make_mesh(config)
    part = host_part(mesh)
    loader = stack.enter_context(Loader(loader_config(config), part.index, part.count))
    resolved = configs.resolve(config, loader.num_examples, jax.default_backend())
    keep = resolved.checkpoint
    checkpoints = stack.enter_context(Checkpoints(workdir, keep.keep_last, keep.keep_every_steps))
    provenance = Provenance.of(resolved, loader.fingerprint)
    run = Run(resolved, objective, loader, mesh, folder, checkpoints, provenance)
    announce(run)
    return run


def begin_with(path: str, state: TrainState) -> TrainState:
    """The state of step 0 with the weights at ``path``; the average begins with them too.

    Raises:
        UserError: there are none, or they do not fit.
    """
    model = load_weights(path, state.model)
    say(f"starting from the weights of {path}: step 0, fresh optimizer")
    ema = None if state.ema is None else jax.tree.map(jnp.copy, model)
    return replace(state, model=model, ema=ema)


def loader_config(config: ConfigDict) -> LoaderConfig:
    """What the loader needs to know of a run."""
    data = config.data
    return LoaderConfig(
        path=data.path,
        split=data.split,
        image_size=configs.image_size(config),
        channels=config.model.in_channels,
        batch_size=data.batch_size,
        seed=config.run.seed,
        augment=data.augment,
        crop_scale=tuple(data.crop_scale),
        interpolation=data.interpolation,
        flip=data.flip,
        num_workers=data.num_workers,
        num_threads=data.num_threads or os.cpu_count() or 1,
        read_ahead=data.read_ahead,
        max_bad_rate=data.max_bad_rate,
        decode=data.decode,
    )


def writable_folder(workdir: str) -> Path:
    """Makes the folder and tries to write there.

    Raises:
        UserError: it cannot be written.
    """
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); give another folder"
        ) from None
    return folder


def keep_compiled_programs(folder: Path) -> None:
    """Caches compiled steps in the workdir, so that a resumed run starts at once."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / "compilation_cache"))


def announce(run: Run) -> None:
    """Prints what the run will do."""
    config, facts = run.config, run.objective.describe(run.config)
    say(
        f"{config.objective.name.rpartition('.')[2]}: {facts.parameters:,} parameters, {facts.tokens} tokens, "
        f"{facts.flops / 1e9:,.1f} GFLOP per image and step; {config.run.dtype} products on "
        f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    )
    say(
        f"data: {config.data.path}, {run.loader.num_examples:,} images; batch {config.data.batch_size}, "
        f"{config.schedule.total_steps:,} steps; lr {config.optim.lr:.3g}"
    )
    say(f"workdir: {run.workdir}")


def say(text: str) -> None:
    """Prints on the first host only."""
    if jax.process_index() == 0:
        print(text, flush=True)
