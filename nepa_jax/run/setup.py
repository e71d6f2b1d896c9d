"""Everything of a run that is settled before its first step, and what surrounds the loop."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nepa_jax import config as configs
from nepa_jax.base.errors import UserError, writing
from nepa_jax.base.waiting import attended, told
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.saving import Checkpoints, check_same_run
from nepa_jax.data.loader import Loader
from nepa_jax.hosts.agree import compare_hosts, from_first_host, say
from nepa_jax.mesh import host_part, make_mesh
from nepa_jax.objectives.base import Objective, load_objective
from nepa_jax.optim import table
from nepa_jax.plan.checks import check_run
from nepa_jax.run import groups, segmentation, validation
from nepa_jax.run.feed import DeviceBatches
from nepa_jax.run.goodput import Goodput
from nepa_jax.run.hooks import (
    CheckpointHook,
    Hook,
    MetricsHook,
    ProfileHook,
    ProfileRequest,
    WatchdogHook,
    check_end,
    skip_guard,
)
from nepa_jax.run.lock import WorkdirLock
from nepa_jax.run.loggers.background import Background
from nepa_jax.run.loggers.opening import loggers
from nepa_jax.run.memory import expectation, fitting, memory_is_told, require_room
from nepa_jax.run.metrics import METRICS, JsonlWriter, Scalars, Throughput, Writer
from nepa_jax.run.online import evaluation, problems, watched
from nepa_jax.run.pictures import PicturesHook, drawing, fixed_images
from nepa_jax.run.report import NoReport, Report, Reports
from nepa_jax.run.validation import Several
from nepa_jax.run.workdir import compiled_programs_kept, lost_checkpoints, writable_folder
from nepa_jax.step import (
    TrainState,
    Update,
    abstract_batch,
    abstract_state,
    create_state,
    make_update,
)


@dataclass
class Run:
    """Everything of a run that is settled before the first step."""

    config: ConfigDict  # resolved
    objective: Objective
    loader: Loader
    mesh: Mesh
    target: TrainState  # shapes and shardings of the state
    workdir: Path
    checkpoints: Checkpoints
    provenance: Provenance
    goodput: Goodput
    lock: WorkdirLock | None  # of the first host

    def initial_state(self) -> TrainState:
        """Restored from the newest sound checkpoint, begun with given weights, or initialised.

        Raises:
            UserError: the checkpoints are of another run, or the weights of another model.
        """
        with memory_is_told(self.config), told("restoring or initialising the state"):
            state = self._initial_state()
        compare_hosts({"step to go on from": str(int(state.step))})
        if jax.process_index() == 0:
            with writing(self.workdir):
                (self.workdir / "config.json").write_text(configs.to_json(self.config))
                (self.workdir / "DONE").unlink(missing_ok=True)
            groups.write(self.workdir, table(self.config, self.target.model))
        return state

    def _initial_state(self) -> TrainState:
        require_room(self.target)
        check = partial(check_same_run, current=self.provenance, workdir=str(self.workdir))
        with self.goodput.spent("restore"):
            resumed = self.checkpoints.restore_latest(self.target, check)
        if resumed is not None:
            state, checkpoint = resumed
            changes = check(checkpoint.meta.provenance)
            with_changes = f", with {'; '.join(changes)}" if changes else ""
            say(f"resuming at step {int(state.step)}{with_changes} (from {checkpoint.origin})")
            return state
        lost = from_first_host(lambda: lost_checkpoints(self.workdir, self.goodput))
        if lost:
            raise UserError(lost)
        source, weights = self._first_weights(), None
        require_weights(self.config, source)
        if source:
            from nepa_jax.run.begin import (
                first_weights,
            )  # and the formats, which other runs do without

            weights = first_weights(source, self.target.model, self.config, self.objective)
        return create_state(self.config, self.objective, self.target, weights)

    def _first_weights(self) -> str:
        """Where the weights of step 0 come from; "" if from the seed."""
        imported = str(self.workdir) if self.checkpoints.hold_weights() else ""
        if imported and self.config.run.init_from:
            raise UserError(
                f"run.init_from = {self.config.run.init_from}: the workdir {imported} holds imported "
                "weights already; leave one of them out"
            )
        return imported or self.config.run.init_from

    def compiled_update(self, stop: Callable[[], bool]) -> Update:
        """The update, compiled for this run's shapes before any data is read.

        Raises:
            UserError: it needs more memory than there is.
            GivenUp: ``stop`` said so meanwhile.
        """
        began = time.perf_counter()
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        with self.goodput.spent("compile"):
            compiled = attended(
                partial(fitting, self.config, self._compile, devices), "compiling the step", stop
            )
        say(f"compiled the step in {time.perf_counter() - began:.1f} s")
        return compiled

    def _compile(self, config: ConfigDict) -> Update:
        target = self.target
        if config is not self.config:  # a smaller one is tried, whose model may be another
            target = abstract_state(config, self.objective, self.mesh)
        update = make_update(config, self.objective, target)
        batch = abstract_batch(config, self.loader.records.labelled, self.mesh)
        return update.compiled(target, batch)

    @contextmanager
    def hooks(
        self, data: DeviceBatches, start: int, profile: ProfileRequest
    ) -> Iterator[list[Hook]]:
        """Logging, guarding, saving, profiling; to be closed in order when the loop ends well."""
        config, flops = self.config, self.objective.describe(self.config).flops
        throughput = Throughput(config.data.batch_size, flops, lambda: data.waited_s)
        guard = skip_guard(config.run.max_skipped_steps, self.loader.shown)
        evaluations, is_best = self._evaluations()
        keep = config.checkpoint
        with (
            loggers(config, self.workdir, start) as copies,
            self._reporting(start, copies) as report,
            WatchdogHook(config.log.watchdog_s) as watchdog,
            ProfileHook(self.workdir / "profile", config.log.profile_steps, profile) as profiler,
        ):
            hooks = [
                MetricsHook(config.log.every_steps, throughput, guard, report, evaluations),
                CheckpointHook(
                    keep.every_steps,
                    keep.first_minutes,
                    self.checkpoints,
                    self.provenance,
                    self.goodput,
                    is_best,
                ),
                *self._pictures(copies),
                profiler,
                watchdog,
            ]
            self.goodput.begin(start, lambda: data.waited_s)
            yield hooks

    def _evaluations(self) -> tuple[Several, Callable[[int], bool]]:
        """What is evaluated while it trains, and whether a step is to be saved for what was found."""
        online = evaluation(
            self.config, self.objective, self.mesh, self.loader.records, self.goodput
        )
        measured = tests_of(self.objective).validation(
            self.config, self.objective, self.mesh, self.workdir, self.goodput, self.checkpoints
        )
        found = Several([each for each in (online, measured) if each])
        best = measured.best if measured else None
        return found, best.is_of if best else lambda step: False

    def _pictures(self, copies: Sequence[Background]) -> list[Hook]:
        """What draws while it trains, if that is asked for."""
        every = self.config.log.pictures_every_steps
        if not every:
            return []
        with self.goodput.spent("compile"):
            images = fixed_images(self.config, self.loader.records)
            draw = drawing(self.objective, self.target.model, images, self.mesh)
        return [PicturesHook(every, draw, copies)]

    @contextmanager
    def _reporting(self, start: int, copies: Sequence[Writer]) -> Iterator[Reports]:
        """What takes the metrics: files and the terminal on the first host, nothing on others."""
        if jax.process_index() != 0:
            yield NoReport()
            return
        total, alarms = self.config.schedule.total_steps, getattr(self.objective, "alarms", ())
        with closing(JsonlWriter(self.workdir / METRICS, start)) as file:
            report = Report([file, *copies], start, total, self._facts, alarms)
            with closing(report):
                yield report

    def _facts(self, step: int) -> Scalars:
        """What is logged beside the step's own metrics."""
        self.lock.check()
        return {
            **self.loader.stats(),
            **self.goodput.write(step, self.checkpoints.saved_step),
        }

    def account(self, step: int) -> None:
        """Says where the time went."""
        if jax.process_index() == 0:
            self.goodput.write(step, self.checkpoints.saved_step)
            say(f"goodput: {self.goodput.summary()}")

    def mark_done(self, state: TrainState) -> None:
        """Writes ``WORKDIR/DONE`` after the last step: launchers ask for it.

        Raises:
            RunDiverged: the last step was thrown away.
        """
        step = int(state.step)
        if step < self.config.schedule.total_steps:
            return
        check_end(state)
        if jax.process_index() == 0:
            with writing(self.workdir):
                (self.workdir / "DONE").write_text(f"{step}\n")


def set_up(config: ConfigDict, workdir: str, stack: ExitStack) -> Run:
    """Checks everything that can be wrong, opens data and workdir, and says what will be done.

    Raises:
        UserError: a mistake in the config, the data set or the workdir; or the hosts differ.
    """
    objective = load_objective(config.objective.name)
    check_run(config, objective, jax.device_count())
    folder = writable_folder(workdir)
    lock = stack.enter_context(WorkdirLock(folder)) if jax.process_index() == 0 else None
    stack.enter_context(compiled_programs_kept())
    goodput = Goodput(folder / "goodput.json")
    mesh = make_mesh(config)
    part = host_part(mesh)
    loader = stack.enter_context(Loader(configs.loader_config(config), part.index, part.count))
    resolved = configs.resolve(config, loader.num_examples, jax.default_backend())
    if hasattr(objective, "data_problems"):
        configs.refuse(objective.data_problems(resolved, loader.records))
    configs.refuse(
        [
            *problems(resolved, objective, loader.records),
            *tests_of(objective).problems(resolved, objective, loader.records),
        ]
    )
    keep = resolved.checkpoint
    checkpoints = stack.enter_context(Checkpoints(workdir, keep.keep_last, keep.keep_every_steps))
    provenance = Provenance.of(resolved, loader.fingerprint)
    compare_hosts(facts(resolved, loader.fingerprint))
    target = abstract_state(resolved, objective, mesh)
    target = watched(target, resolved, objective, loader.records)
    run = Run(
        resolved, objective, loader, mesh, target, folder, checkpoints, provenance, goodput, lock
    )
    announce(run)
    return run


def tests_of(objective: Objective) -> ModuleType:
    """What tests what it learns: classes of pixels, or labels of images."""
    return segmentation if hasattr(objective, "window_scores") else validation


def require_weights(config: ConfigDict, source: str) -> None:
    """Raises UserError where a fine-tuning recipe would train an encoder from nothing."""
    optim = config.optim
    keys = ("layer_decay", "freeze_patch_embed")
    asked = [f"optim.{key} = {optim[key]}" for key in keys if optim[key]]
    if asked and not source:
        raise UserError(
            f"run.init_from is not set: {' and '.join(asked)} are for weights that were trained before; "
            "try --config.run.init_from=W, or --config=configs/finetune.py:scratch,B/16"
        )


def facts(config: ConfigDict, fingerprint: str) -> dict[str, str]:
    """What all hosts must hold alike."""
    keys = {f"config.{key}": str(value) for key, value in configs.flat_keys(config).items()}
    return keys | {
        "the data set's fingerprint": fingerprint[:12],
        "nepa_jax's source": source_digest(),
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} {jax.devices()[0].device_kind}",
    }


def source_digest() -> str:
    """A hash of the package's own files: tells a host with other code."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


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
    for line in groups.lines_of(table(config, run.target.model)):
        say(line)
    say(expectation(config, run.target))
    say(f"workdir: {run.workdir}")
