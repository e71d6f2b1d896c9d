"""mIoU on a whole split while a segmenter trains: windows slide over every image, at its own shape.

As mmsegmentation tests on ADE20K: the short side of an image at the side of the windows, one every two
thirds of it, scores averaged where windows overlap, resized to the mask; evals/segment_head.py has these.
"""

import csv
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError, writing
from nepa_jax.base.threads import ordered_map
from nepa_jax.checkpoint.saving import Checkpoints
from nepa_jax.data.loader import require_masks
from nepa_jax.data.records import RecordSet, open_dataset
from nepa_jax.evals import miou, windows
from nepa_jax.evals.segment_head import STRIDE, THREADS, Example, examples_of, predicted
from nepa_jax.hosts.agree import from_first_host
from nepa_jax.mesh import host_part, put_batch, replicated
from nepa_jax.models.upernet import Statistics
from nepa_jax.objectives.base import Objective
from nepa_jax.run.goodput import Goodput
from nepa_jax.run.metrics import Scalars
from nepa_jax.run.validation import Best, tell, too_few
from nepa_jax.step import TrainState

BY = "miou"  # what the best checkpoint is chosen by: of the average, where there is one
LOGGED = ("miou", "pixel_accuracy", "mean_accuracy")
SHOWN = 6  # images in the picture
EXAMPLES = "examples.npz"  # what the picture is drawn from


def problems(config: ConfigDict, objective: Objective, records: RecordSet) -> Iterator[str]:
    """Why a run cannot be tested as its config asks, a line each, before anything is computed.

    Args:
        config: resolved.
        records: of the training split.
    """
    asked = config.evals
    if not asked.validate:
        if config.checkpoint.keep_best:
            yield "checkpoint.keep_best = True: goes by evals.validate, which is off; try false"
        return
    name = f"evals.test_split = {asked.test_split}"
    if asked.test_split == config.data.split:
        yield f"{name}: these images are trained on; try another split"
    try:
        split = open_dataset(config.data.path, asked.test_split)
        require_masks(split)
    except UserError as error:
        yield f"{name}: {error}; or evals.validate=false"
        return
    if split.classes != records.classes:
        yield (
            f"{name}: has other classes ({_few(split.classes)}) than {config.data.split} "
            f"({_few(records.classes)}); prepare both with the same"
        )
    yield from too_few(config, split)


def _few(classes: Sequence[str]) -> str:
    """How many, and the first three."""
    return f"{len(classes)}: {', '.join(classes[:3])}{', …' if len(classes) > 3 else ''}"


@dataclass
class Found:
    """What a pass over the split comes to."""

    counts: np.ndarray  # int64 [K, K], as miou.confusion
    shown: list[tuple[Example, np.ndarray]] = field(default_factory=list)  # with predictions [h, w]


@dataclass
class Segmentation:
    """A whole split once through the model, by all devices; a function of the state.

    Every host cuts the same windows and computes its part of them; the first one counts.
    """

    objective: Objective
    mesh: Mesh
    records: RecordSet
    side: int  # of windows, px
    channels: int
    first: int | None  # so many images alone: then no checkpoint is the best one
    every: int  # steps
    last_step: int
    goodput: Goodput
    folder: Path  # for what is found at the end
    best: Best | None = None
    _scores: object = field(init=False)

    def __post_init__(self) -> None:
        self._scores = jax.jit(
            partial(_window_scores, self.objective, self.mesh),
            out_shardings=replicated(self.mesh),
        )

    def due(self, step: int) -> bool:
        """Every n steps, and at the end."""
        return step % self.every == 0 or step == self.last_step

    def __call__(self, state: TrainState) -> Scalars:
        """``eval/miou``, ``eval/pixel_accuracy``, ``eval/mean_accuracy`` in [0, 1], and of the average
        ``eval/ema_…``."""
        began, step = time.perf_counter(), int(state.step)
        jax.block_until_ready(state)  # host devices could block one another otherwise
        scalars: dict[str, float] = {}
        with self.goodput.spent("evaluation"):
            for prefix, model in (("", state.model), ("ema_", state.ema)):
                if model is not None:
                    found = self.found(model, state.extra)
                    scalars |= {f"eval/{prefix}{n}": v for n, v in _means(found).items()}
        images = self.first or len(self.records)
        tell(step, scalars, self.first, images, time.perf_counter() - began)
        if self.best and self.first is None:
            self.best.compare(step, scalars.get(f"eval/ema_{BY}", scalars[f"eval/{BY}"]))
        if step == self.last_step and jax.process_index() == 0:
            write(self.folder, found, self.records.classes)
        return scalars

    def found(self, model: nnx.Module, extra: Statistics) -> Found:
        """The pixels of the split by class, on the first host; all hosts must ask."""
        classes = len(self.records.classes)
        found = Found(np.zeros((classes, classes), np.int64))
        counting = self._predicted if jax.process_index() == 0 else _awaited
        examples = islice(examples_of(self.records, self.side, self.channels), self.first)
        for example, prediction in ordered_map(
            counting, self._scored(examples, model, extra), THREADS
        ):
            if prediction is not None:
                found.counts += miou.confusion(example.mask, prediction, classes)
                if len(found.shown) < SHOWN:
                    found.shown.append((example, prediction))
        return found

    @property
    def stride(self) -> int:
        return round(STRIDE * self.side)

    def _scored(
        self, examples: Iterator[Example], model: nnx.Module, extra: Statistics
    ) -> Iterator[tuple[Example, jax.Array, int]]:
        """Each image with the scores of its windows [at least n, rows, columns, K], and n."""
        part, devices = host_part(self.mesh), self.mesh.size
        for example in examples:
            cut = windows.cut(example.image, (self.side,) * 2, self.stride)
            # Few shapes to compile for, which all devices share.
            size = -(-(1 << math.ceil(math.log2(len(cut)))) // devices) * devices
            padded = np.pad(cut, ((0, size - len(cut)), (0, 0), (0, 0), (0, 0)))
            rows = size // part.count
            own = padded[part.index * rows : (part.index + 1) * rows]
            yield (
                example,
                self._scores(model, extra, put_batch({"image": own}, self.mesh)),
                len(cut),
            )

    def _predicted(self, scored: tuple[Example, jax.Array, int]) -> tuple[Example, np.ndarray]:
        example, scores, count = scored
        return example, predicted(np.asarray(scores)[:count], example, self.side, self.stride)


def _awaited(scored: tuple[Example, jax.Array, int]) -> tuple[Example, None]:
    example, scores, _ = scored
    scores.block_until_ready()
    return example, None


def _window_scores(
    objective: Objective,
    mesh: Mesh,
    model: nnx.Module,
    extra: Statistics,
    batch: dict[str, jax.Array],
) -> jax.Array:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return objective.window_scores(model, extra, batch["image"])


def _means(found: Found) -> dict[str, float]:
    """What is logged, as the first host has counted it."""

    def answer() -> str:
        scores = miou.scores(found.counts)
        return json.dumps({name: scores[name] for name in LOGGED})

    return json.loads(from_first_host(answer))


def validation(
    config: ConfigDict,
    objective: Objective,
    mesh: Mesh,
    workdir: Path,
    goodput: Goodput,
    checkpoints: Checkpoints,
) -> Segmentation | None:
    """What is measured of a run's masks, None where nothing is asked for.

    Args:
        config: resolved.
    """
    asked = config.evals
    if not asked.validate:
        return None
    folder = workdir / "eval"
    keep = config.checkpoint.keep_best
    best = Best(folder / "best.json", checkpoints, by=BY) if keep else None
    return Segmentation(
        objective, mesh, open_dataset(config.data.path, asked.test_split),
        config.model.image_size[0], config.model.in_channels, asked.validate_images or None,
        asked.every_steps, config.schedule.total_steps, goodput, folder, best,
    )  # fmt: skip


def write(folder: Path, found: Found, classes: Sequence[str]) -> None:
    """``per_class.csv``, and the first images with their masks and predictions for the picture."""
    scores = miou.by_class(miou.scores(found.counts), classes)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "per_class.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(("class", "pixels", "iou", "accuracy", "precision", "dice"))
            for name, pixels in zip(classes, found.counts.sum(axis=1), strict=True):
                values = (scores[name][key] for key in ("iou", "accuracy", "precision", "dice"))
                lines.writerow((name, pixels, *("" if v is None else f"{v:.4f}" for v in values)))
        arrays = {"classes": np.array(classes)}
        for number, (example, prediction) in enumerate(found.shown):
            arrays |= {
                f"image{number}": example.image,
                f"mask{number}": example.mask,
                f"prediction{number}": prediction.astype(np.uint8),
            }
        np.savez_compressed(folder / EXAMPLES, **arrays)
