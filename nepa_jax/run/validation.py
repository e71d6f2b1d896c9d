"""Loss and accuracy on a whole split while a classifier trains, of its weights and of their average."""

import csv
import json
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError, writing
from nepa_jax.base.text import read_json
from nepa_jax.checkpoint.saving import Checkpoints
from nepa_jax.config import evaluation_data
from nepa_jax.data.loader import LoaderConfig, iter_epoch
from nepa_jax.data.records import RecordSet, open_dataset
from nepa_jax.hosts.agree import say
from nepa_jax.mesh import host_part, put_batch, replicated
from nepa_jax.objectives.base import Batch, Objective
from nepa_jax.run.goodput import Goodput
from nepa_jax.run.hooks import Evaluation
from nepa_jax.run.metrics import Scalars
from nepa_jax.step import TrainState

AHEAD = 2  # batches that the devices have while the one before is taken
BY = "top1"  # what the best checkpoint is chosen by: of the average, where there is one

Rows = Mapping[str, np.ndarray]  # of a split's images, in order


def problems(config: ConfigDict, objective: Objective, records: RecordSet) -> Iterator[str]:
    """Why a run cannot be validated as its config asks, a line each, before anything is computed.

    Args:
        config: resolved.
        records: of the training split.
    """
    asked = config.evals
    if not asked.validate:
        if config.checkpoint.keep_best:
            yield "checkpoint.keep_best = True: goes by evals.validate, which is off; try false"
        return
    if not hasattr(objective, "measure"):
        yield (
            f"evals.validate = True: {config.objective.name} learns no labels, and has no accuracy; try "
            "evals.validate=false"
        )
        return
    if asked.test_split == config.data.split:
        yield f"evals.test_split = {asked.test_split}: these images are trained on; try another split"
    try:
        split = open_dataset(config.data.path, asked.test_split)
    except UserError as error:
        yield f"evals.test_split = {asked.test_split}: {error}; or evals.validate=false"
        return
    if not split.labelled:
        yield f"evals.test_split = {asked.test_split}: its images have no labels; try another split"
    yield from too_few(config, split)


def too_few(config: ConfigDict, split: RecordSet) -> Iterator[str]:
    """A line if more images are asked for than the test split has."""
    if config.evals.validate_images > len(split):
        yield (
            f"evals.validate_images = {config.evals.validate_images}: the split {split.split} has "
            f"{len(split):,} images; try 0, for all"
        )


@dataclass
class Validation:
    """A whole split once through the model, centre crops, by all devices of all hosts.

    Every image counts once, those of the last batch too; a function of the state.
    """

    objective: Objective
    mesh: Mesh
    data: LoaderConfig
    first: int | None  # so many images alone: then no checkpoint is the best one
    classes: Sequence[str]
    every: int  # steps
    last_step: int
    goodput: Goodput
    folder: Path  # for what is found at the end
    best: "Best | None" = None
    _measure: object = field(init=False)

    def __post_init__(self) -> None:
        self._measure = jax.jit(
            partial(_measured, self.objective, self.mesh), out_shardings=replicated(self.mesh)
        )

    def due(self, step: int) -> bool:
        """Every n steps, and at the end."""
        return step % self.every == 0 or step == self.last_step

    def __call__(self, state: TrainState) -> Scalars:
        """``eval/loss``, ``eval/top1``, ``eval/top5`` in [0, 1], and of the average ``eval/ema_…``."""
        began, step = time.perf_counter(), int(state.step)
        jax.block_until_ready(state)  # host devices could block one another otherwise
        found: dict[str, float] = {}
        with self.goodput.spent("evaluation"):
            for prefix, model in (("", state.model), ("ema_", state.ema)):
                if model is not None:
                    rows = self.rows(model)
                    means = self.objective.means(rows)
                    found |= {f"eval/{prefix}{name}": value for name, value in means.items()}
        tell(step, found, self.first, len(rows["index"]), time.perf_counter() - began)
        if self.best and self.first is None:
            self.best.compare(step, found.get(f"eval/ema_{BY}", found.get(f"eval/{BY}")))
        if step == self.last_step and jax.process_index() == 0:
            write_predictions(self.folder, rows, self.classes)
        return found

    def rows(self, model: nnx.Module) -> Rows:
        """What the objective measures of every image, ``index`` and ``label``; all hosts must ask."""
        part, waiting, kept = host_part(self.mesh), deque(), []
        for made in iter_epoch(self.data, part.index, part.count, self.first):
            batch = made.batch | {"index": made.account.index.astype(np.int32)}
            waiting.append(self._measure(model, put_batch(batch, self.mesh)))
            if len(waiting) > AHEAD:
                kept.append(_there(waiting.popleft()))
        kept += [_there(rows) for rows in waiting]
        return {name: np.concatenate([rows[name] for rows in kept]) for name in kept[0]}


def tell(step: int, found: Scalars, first: int | None, images: int, seconds: float) -> None:
    """Says what was found, and of how many images."""
    words = [f"{name.removeprefix('eval/')} {value:.4f}" for name, value in found.items()]
    few = "" if first is None else f" of the first {first:,} images alone"
    say(f"step {step}{few}: {', '.join(words)} ({images:,} images in {seconds:.1f} s)")


def _measured(objective: Objective, mesh: Mesh, model: nnx.Module, batch: Batch) -> Batch:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        measured = objective.measure(model, batch)
    return measured | {name: batch[name] for name in ("index", "label")}


def _there(rows: Mapping[str, jax.Array]) -> Rows:
    """On this host, without the rows that no image stands in."""
    found = {name: np.asarray(values) for name, values in rows.items()}
    return {name: values[found["index"] >= 0] for name, values in found.items()}


class Best:
    """The checkpoint with the best score so far, which is kept; ``WORKDIR/eval/best.json`` names it."""

    def __init__(self, file: Path, checkpoints: Checkpoints, by: str = BY):
        self._file, self._checkpoints, self._by = file, checkpoints, by
        self._step, self._score = 0, -np.inf
        found = read_json(file, dict) if file.is_file() else {}
        if found.get("step") in checkpoints.listed:
            self._step, self._score = int(found["step"]), float(found["score"])
            checkpoints.also_kept.add(self._step)

    def compare(self, step: int, score: float) -> None:
        """A tie is left to the earlier one."""
        if score <= self._score or step == self._step:
            return
        self._checkpoints.also_kept.discard(self._step)
        self._checkpoints.also_kept.add(step)
        self._step, self._score = step, score
        if jax.process_index() == 0:
            with writing(self._file):
                self._file.parent.mkdir(parents=True, exist_ok=True)
                self._file.write_text(
                    json.dumps({"step": step, "score": score, "by": self._by}) + "\n"
                )

    def is_of(self, step: int) -> bool:
        """Whether a step is to be saved for it."""
        return step == self._step


@dataclass(frozen=True)
class Several:
    """Evaluations of one run, each when it is due."""

    evaluations: Sequence[Evaluation]

    def due(self, step: int) -> bool:
        return any(each.due(step) for each in self.evaluations)

    def __call__(self, state: TrainState) -> Scalars:
        step, found = int(state.step), {}
        for each in self.evaluations:
            if each.due(step):
                found |= each(state)
        return found


def validation(
    config: ConfigDict,
    objective: Objective,
    mesh: Mesh,
    workdir: Path,
    goodput: Goodput,
    checkpoints: Checkpoints,
) -> Validation | None:
    """What is measured of a run's labels, None where nothing is asked for.

    Args:
        config: resolved.
    """
    asked, data = config.evals, config.data
    if not asked.validate:
        return None
    cut = replace(
        evaluation_data(config),
        path=data.path,
        split=asked.test_split,
        batch_size=data.batch_size,
        num_workers=data.num_workers,
        num_threads=data.num_threads,
        max_bad_rate=data.max_bad_rate,
    )
    folder = workdir / "eval"
    best = Best(folder / "best.json", checkpoints) if config.checkpoint.keep_best else None
    return Validation(
        objective, mesh, cut, asked.validate_images or None,
        open_dataset(data.path, asked.test_split).classes, asked.every_steps,
        config.schedule.total_steps, goodput, folder, best,
    )  # fmt: skip


def write_predictions(folder: Path, rows: Rows, classes: Sequence[str]) -> None:
    """``predictions.csv``, a line for each image, and ``per_class.csv``."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "predictions.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(("record", "label", "prediction", "loss"))
            for record, label, taken, loss in zip(
                rows["index"], rows["label"], rows["prediction"], rows["loss"], strict=True
            ):
                lines.writerow((record, classes[label], classes[taken], f"{loss:.6g}"))
        with (folder / "per_class.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(("class", "images", "correct", "top1"))
            for number, name in enumerate(classes):
                of_class = rows["label"] == number
                images, correct = of_class.sum(), (rows["prediction"][of_class] == number).sum()
                share = f"{correct / images:.4f}" if images else ""
                lines.writerow((name, images, correct, share))
