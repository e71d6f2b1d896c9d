"""What is measured of an encoder while it trains: kNN in a held bank of images, RankMe, and linear heads.

The heads learn beside every step (objectives/watch.py). The rest is computed after some steps from the
state alone, so that a step that is done again after a restart gives the same numbers again.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.config import evaluation_data
from nepa_jax.data.loader import LoaderConfig
from nepa_jax.data.records import RecordSet, open_dataset
from nepa_jax.evals import knn, rank
from nepa_jax.evals.encoders import shapes_of
from nepa_jax.evals.features import Placed, encoded_by
from nepa_jax.evals.results import chance_of
from nepa_jax.hosts.agree import say
from nepa_jax.loading import Loaded
from nepa_jax.objectives.base import Objective, abstract_model
from nepa_jax.objectives.watch import chosen_layers
from nepa_jax.run.goodput import Goodput
from nepa_jax.run.metrics import Scalars
from nepa_jax.step import TrainState, with_heads

ByLayer = dict[int, float]

BATCH = 16  # images of a device at a time: all layers' tokens of these lie there at once


def problems(config: ConfigDict, objective: Objective, records: RecordSet) -> Iterator[str]:
    """Why a run cannot be watched as its config asks, a line each, before anything is computed.

    Args:
        config: resolved.
        records: of the training split.
    """
    if not config.evals.online:
        return
    yield from _too_few("bank_images", config, records)
    if records.labelled:
        yield from _test_problems(config)
    shapes = shapes_of(
        Loaded(abstract_model(objective.init_model, config), objective, config),
        config.model.image_size,
    ).patches.shape
    if len(shapes) != 4 or shapes[0] <= max(chosen_layers(config)):
        yield (
            f"evals.online = True: encode of {config.objective.name} with layer=None gives patches of shape "
            f"{shapes}, and evaluation wants [layers, B, N, D] of the embedding and every layer; try "
            "evals.online=false"
        )


def _test_problems(config: ConfigDict) -> Iterator[str]:
    split = f"evals.test_split = {config.evals.test_split}"
    try:
        records = open_dataset(config.data.path, config.evals.test_split)
    except UserError as error:
        yield f"{split}: {error}; or try evals.online=false"
        return
    if not records.labelled:
        yield f"{split}: its images have no labels to test kNN by; try another split"
    yield from _too_few("test_images", config, records)


def _too_few(key: str, config: ConfigDict, records: RecordSet) -> Iterator[str]:
    wanted, there = config.evals[key], len(records)
    if wanted > there:
        yield (
            f"evals.{key} = {wanted}: the split {records.split} has {there} images; try "
            f"--config.evals.{key}={there}"
        )


def watched(
    target: TrainState, config: ConfigDict, objective: Objective, records: RecordSet
) -> TrainState:
    """The abstract state, with linear heads where the config asks for them; says what is measured."""
    if not config.evals.online:
        return target
    target = with_heads(target, config, objective, records.num_classes if records.labelled else 0)
    at = f"at layers {', '.join(map(str, chosen_layers(config)))}"
    what = f"linear heads, kNN and RankMe {at}"
    if not records.labelled:
        what = f"RankMe {at} alone, as the images have no labels"
    elif target.heads is None:
        name = config.objective.name
        what = f"kNN and RankMe {at}; {name} gives no features for linear heads (Aux.pooled)"
    say(f"while it trains (evals.online): {what}; every {config.evals.every_steps:,} steps")
    return target


class Images(NamedTuple):
    """The first images of a split."""

    data: LoaderConfig
    count: int


class Vectors(NamedTuple):
    """Of some images."""

    features: np.ndarray  # float32 [layers, n, D]
    labels: np.ndarray  # int32 [n]


@dataclass(frozen=True)
class OnlineEvaluation:
    """kNN and RankMe of the raw weights, by means over the patches of whole images."""

    objective: Objective
    mesh: Mesh
    layers: tuple[int, ...]
    bank: Images
    test: Images | None  # None: there are no labels
    every: int  # steps
    last_step: int
    goodput: Goodput

    def due(self, step: int) -> bool:
        """After the first step, whose weights are all but fresh, then every n steps and at the end."""
        return step in (1, self.last_step) or step % self.every == 0

    def __call__(self, state: TrainState) -> Scalars:
        """``eval/knn/layer_N``, top-1 in [0, 1], and ``eval/rankme/layer_N``; all hosts must ask."""
        began = time.perf_counter()
        jax.block_until_ready(state)  # host devices could block one another otherwise
        with self.goodput.spent("evaluation"):
            ranks, neighbors, chance = self._measured(state.model)
        told = [f"RankMe {_row(ranks, '.1f')}"]
        if neighbors:
            told.insert(0, f"kNN {_row(neighbors, '.3f')} (chance {chance:.3f})")
        at, took = ", ".join(map(str, self.layers)), time.perf_counter() - began
        say(f"step {int(state.step)}, layers {at}: {', '.join(told)}; in {took:.1f} s")
        return _named("rankme", ranks) | _named("knn", neighbors)

    def _measured(self, model: nnx.Module) -> tuple[ByLayer, ByLayer, float]:
        """RankMe, kNN and its chance; without labels no kNN."""
        bank = self._vectors(model, self.bank)
        ranks = {
            layer: rank.entropic_rank(rank.singular_values(x.astype(np.float64)), rank.EPSILON)
            for layer, x in zip(self.layers, bank.features, strict=True)
        }
        if self.test is None:
            return ranks, {}, 0.0
        test = self._vectors(model, self.test)
        one = knn.Setting(min(knn.NUM_NEIGHBORS, len(bank.labels)), knn.TEMPERATURE)
        neighbors = {
            layer: knn.scores(x, bank.labels, queries, test.labels, [one])[0]["top1"]
            for layer, x, queries in zip(self.layers, bank.features, test.features, strict=True)
        }
        return ranks, neighbors, chance_of(bank.labels, test.labels)

    def _vectors(self, model: nnx.Module, images: Images) -> Vectors:
        placed = Placed(self.objective, model, self.mesh)
        rows = list(encoded_by(placed, images.data, ("mean",), self.layers, images.count))
        features = np.concatenate([each.pooled["mean"] for each in rows], axis=1)
        return Vectors(features, np.concatenate([each.labels for each in rows]))


def evaluation(
    config: ConfigDict, objective: Objective, mesh: Mesh, records: RecordSet, goodput: Goodput
) -> OnlineEvaluation | None:
    """What is computed after some steps of a run, None where nothing is asked for.

    Args:
        config: resolved.
        records: of the training split.
    """
    asked, data = config.evals, config.data
    if not asked.online:
        return None
    cut = replace(
        evaluation_data(config),
        path=data.path,
        split=data.split,
        batch_size=BATCH * mesh.size,
        num_threads=data.num_threads,
        max_bad_rate=data.max_bad_rate,
    )
    test = Images(replace(cut, split=asked.test_split), asked.test_images)
    return OnlineEvaluation(
        objective, mesh, chosen_layers(config),
        Images(cut, asked.bank_images), test if records.labelled else None,
        asked.every_steps, config.schedule.total_steps, goodput,
    )  # fmt: skip


def _named(what: str, found: ByLayer) -> Scalars:
    return {f"eval/{what}/layer_{layer}": value for layer, value in found.items()}


def _row(found: ByLayer, form: str) -> str:
    return " ".join(format(value, form) for value in found.values())
