"""What the probes with trained heads share: where images come from, what is held out, the table.

Of the training images a tenth is held out to choose layer and rate by, unless there is one layer and
one rate and so nothing to choose; those train no head.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from nepa_jax.base.errors import UserError
from nepa_jax.base.memory import memory_bytes
from nepa_jax.base.version import __version__
from nepa_jax.data.loader import Loader, LoaderConfig
from nepa_jax.evals import subsets
from nepa_jax.evals.encoders import shapes_of, weights_digest
from nepa_jax.evals.heads.grids import Design, Rows, count_parameters
from nepa_jax.evals.heads.recipe import Recipe
from nepa_jax.evals.heads.rows import SEED, Stored, Streamed
from nepa_jax.evals.heads.train import Feed, Plan, Trained, measure, shares, train
from nepa_jax.evals.results import Outcome, Row, outcome
from nepa_jax.evals.subject import Subject
from nepa_jax.mesh import host_part, side_by_side

TOKEN_SHARE = 0.3  # of a device's memory: twice at a time, and what is computed of them
TEST_ROWS = 4096  # stored vectors at a time
WHOLE = 64  # of a batch as large as the set: its size is made a multiple, which hosts can share
CROP = dict(crop="random_clipped", crop_scale=(0.08, 1.0), flip=True)  # MAE's linear probing


class Sources(NamedTuple):
    """Where rows come from."""

    feed: Feed
    steps_per_epoch: int
    test: Callable[[], Iterable[Rows]]
    held: Callable[[], Iterable[Rows]]


def probe(
    subject: Subject,
    recipe: Recipe,
    design_of: Callable[[int, int], Design],
    protocol: Mapping[str, Any],
) -> Outcome:
    """Trains a head for every layer and rate and tells what each is worth.

    Args:
        subject: the encoder and the images.
        recipe: of the training.
        design_of: a head for so many classes, trained for so many steps.
        protocol: what is to be told of the probe beside the recipe.

    Raises:
        UserError: images without labels, or fewer than a batch can be made of.
    """
    subject.require_labels()
    mesh, held = side_by_side(), held_out(subject, recipe)
    require_room(subject, recipe, min(recipe.batch_size, len(held)), mesh)
    open_sources = streamed if recipe.augmented else stored
    with open_sources(subject, recipe, held, mesh) as (sources, batch_size):
        total = recipe.epochs * sources.steps_per_epoch
        plan = Plan(
            num_layers=len(subject.layers),
            rates=tuple(rate * batch_size / 256 for rate in recipe.rates),
            epochs=recipe.epochs,
            steps_per_epoch=sources.steps_per_epoch,
            warmup_steps=round(recipe.warmup * total),
        )
        design = design_of(num_classes(subject), total)
        told = {
            **protocol,
            **told_of(subject, recipe, held),
            "batch_size": batch_size,
            "steps": total,
            "parameters_per_head": count_parameters(design),
        }
        trained = train(design, plan, sources.feed, sources.test, mesh, facts_of(subject, told))
        on_held = None
        if held.any():
            found = measure(design, trained.grid, sources.held(), mesh)
            on_held = shares([found]).top1[0]
    return table(subject, recipe, told, trained, on_held)


def num_classes(subject: Subject) -> int:
    """Of both splits."""
    return max(subject.train_records.num_classes, subject.test_records.num_classes)


def num_train(subject: Subject) -> int:
    """Training images, those that are held out among them."""
    return min(len(subject.train_records), subject.train_images or len(subject.train_records))


def held_out(subject: Subject, recipe: Recipe) -> np.ndarray:
    """Which training records are held out, bool [n]: none if there is nothing to choose.

    They are drawn by number: the labels of a set that is streamed are not known beforehand.
    """
    held = np.zeros(num_train(subject), bool)
    if len(subject.layers) * len(recipe.rates) > 1:
        held[subsets.hold_out(np.zeros(len(held), np.int32))[1]] = True
    return held


def fitting(batch_size: int, images: int) -> int:
    """The batch size, or of a smaller set about its number of images.

    Raises:
        UserError: there are no images.
    """
    if images < 2:
        raise UserError(f"there are {images} images to train heads on: give more")
    if batch_size <= images:
        return batch_size
    return images // WHOLE * WHOLE or images


def require_room(subject: Subject, recipe: Recipe, batch_size: int, mesh: Mesh) -> None:
    """Raises UserError if the tokens of a batch are more than the devices can hold."""
    if recipe.pool != "none":
        return
    patches = shapes_of(subject.loaded, subject.data.image_size).patches
    of_image = 4 * len(subject.layers) * patches.shape[2] * patches.shape[3]
    fitting = int(TOKEN_SHARE * device_bytes() * mesh.size / of_image)
    if batch_size > fitting:
        raise UserError(
            f"--batch-size={batch_size}: tokens of {len(subject.layers)} layers take "
            f"{of_image * batch_size / mesh.size / 2**30:,.1f} GiB on each of {mesh.size} device(s), of "
            f"which {device_bytes() / 2**30:,.1f} GiB are there; try --batch-size="
            f"{2 ** max(1, int(np.log2(max(fitting, 2))))}, or one --layer at a time"
        )


def device_bytes() -> int:
    """The memory of a device; devices of a CPU share the machine's."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    return limit or memory_bytes() // jax.local_device_count()


Opened = Iterator[tuple[Sources, int]]  # with the batch size


@contextmanager
def stored(subject: Subject, recipe: Recipe, held: np.ndarray, mesh: Mesh) -> Opened:
    """Features computed once, of images cut as in evaluation."""
    features, tests = subject.train((recipe.pool,)), subject.test((recipe.pool,))
    is_held = held[features.index]
    places = np.flatnonzero(~is_held)
    batch_size = fitting(recipe.batch_size, len(places))
    of_train = partial(Stored, features.features[recipe.pool], features.labels, mesh=mesh)
    of_test = Stored(tests.features[recipe.pool], tests.labels, np.arange(len(tests)), mesh=mesh)
    rows = min(TEST_ROWS, batch_size) if recipe.pool == "none" else TEST_ROWS
    sources = Sources(
        Feed(partial(of_train(places=places).shuffled, batch_size)),
        len(places) // batch_size,
        partial(of_test.in_order, min(rows, len(tests))),
        partial(
            of_train(places=np.flatnonzero(is_held)).in_order, min(rows, max(1, is_held.sum()))
        ),
    )
    yield sources, batch_size


@contextmanager
def streamed(subject: Subject, recipe: Recipe, held: np.ndarray, mesh: Mesh) -> Opened:
    """Images cut at random, through the encoder in every epoch.

    For the test split and what is held out images are cut as in evaluation: of single vectors features
    are stored, and all tokens are streamed again.
    """
    part = host_part(mesh)
    batch_size = fitting(recipe.batch_size, len(held))
    images = Streamed.of(subject.loaded, recipe.pool, subject.layers, mesh)
    data = replace(subject.data, batch_size=batch_size, seed=SEED, **CROP)
    if recipe.pool == "none":
        test, of_held = streamed_tests(subject, images, held, batch_size)
    else:
        test, of_held = stored_tests(subject, recipe.pool, held, mesh)
    with Loader(data, part.index, part.count, len(held)) as loader:
        counts = np.zeros(len(loader.records), bool)
        counts[: len(held)] = ~held
        feed = Feed(lambda step: images.put(loader.made(step), counts), images.encoded)
        yield Sources(feed, len(held) // batch_size, test, of_held), batch_size


Tests = tuple[Callable[[], Iterable[Rows]], Callable[[], Iterable[Rows]]]


def streamed_tests(subject: Subject, images: Streamed, held: np.ndarray, batch_size: int) -> Tests:
    """The test split, and what is held out, through the encoder each time."""

    def calm(data: LoaderConfig) -> LoaderConfig:
        return replace(data, batch_size=batch_size)

    everything = np.ones(len(subject.test_records), bool)
    return (
        partial(images.in_order, calm(subject.test_data), everything, None),
        partial(images.in_order, calm(subject.data), held, len(held)),
    )


def stored_tests(subject: Subject, pool: str, held: np.ndarray, mesh: Mesh) -> Tests:
    """The test split, and what is held out, as stored vectors."""
    tests = subject.test((pool,))
    of_test = Stored(tests.features[pool], tests.labels, np.arange(len(tests)), mesh)

    def of_held() -> Iterator[Rows]:
        features = subject.train((pool,))
        places = np.flatnonzero(held[features.index])
        rows = Stored(features.features[pool], features.labels, places, mesh)
        return rows.in_order(min(TEST_ROWS, len(places)))

    return partial(of_test.in_order, min(TEST_ROWS, len(tests))), of_held


def told_of(subject: Subject, recipe: Recipe, held: np.ndarray) -> dict[str, Any]:
    """What decides the number, beside the encoder and the kind of head."""
    cut = (
        "a random crop of 8 to 100 % of the area, clipped without a second try, and flip; "
        f"{subject.data.interpolation}"
    )
    return {
        "rates_per_256": recipe.rates,
        "epochs": recipe.epochs,
        "warmup_epochs": recipe.warmup * recipe.epochs,
        "schedule": "linear warm-up from 0, half a cosine to 0, by step",
        "train_features": "images through the encoder in every epoch"
        if recipe.augmented
        else "stored: images as in evaluation, through the encoder once",
        "augment": cut if recipe.augmented else "none",
        "train_images": int(len(held) - held.sum()),
        "held_out_images": int(held.sum()),
        "test_images": len(subject.test_records),
        "seed": SEED,
    }


def facts_of(subject: Subject, told: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides how heads come out."""
    return {
        **told,
        "version": __version__,
        "weights": weights_digest(subject.loaded),
        "objective": subject.loaded.config.objective.name,
        "attention": subject.attention,
        "layers": subject.layers,
        "data": repr(subject.data),
        "fingerprints": (subject.train_records.fingerprint, subject.test_records.fingerprint),
    }


def table(
    subject: Subject,
    recipe: Recipe,
    told: Mapping[str, Any],
    trained: Trained,
    on_held: np.ndarray | None,
) -> Outcome:
    """Of every head the scores after the last epoch and, apart, after its best on the test split."""
    rows, by_layer = [], []
    last, best = recipe.epochs - 1, trained.test.top1.argmax(axis=0)
    for i, layer in enumerate(subject.layers):
        of_layer: list[Row] = []
        for j, rate in enumerate(recipe.rates):
            at = {"layer": layer, "pool": shown_pool(recipe), "rate": rate}
            final = at | row_of(trained, (last, i, j), "last")
            if on_held is not None:
                final |= {"held_out": float(on_held[i, j])}
            of_layer.append(final)
            rows += [final, at | row_of(trained, (int(best[i, j]), i, j), "best")]
        by_layer.append(max(of_layer, key=lambda row: row.get("held_out", 0.0)))
    chance = float(trained.labels.max() / trained.labels.sum())
    found = outcome(told, rows, by_layer, chance=chance)
    return replace(found, chosen=chosen_by(subject, recipe))


def shown_pool(recipe: Recipe) -> str:
    """The column of a table."""
    return "tokens" if recipe.pool == "none" else recipe.pool


def row_of(trained: Trained, at: tuple[int, int, int], which: str) -> Row:
    """Scores after an epoch."""
    scores = {name: float(values[at]) for name, values in trained.test._asdict().items()}
    return {"epoch": at[0] + 1, "which_epoch": which} | scores


def chosen_by(subject: Subject, recipe: Recipe) -> str:
    """How the number was chosen, in words."""
    choices = [("layer", len(subject.layers)), ("rate", len(recipe.rates))]
    chosen = " and ".join(name for name, count in choices if count > 1)
    if not chosen:
        return "one layer, one rate, the last epoch: nothing was chosen"
    return f"the {chosen} by top-1 on a held-out part of the training split, after the last epoch"
