"""Weighted nearest-neighbour classification of frozen features.

The protocol of Wu et al. 2018 (arXiv 1805.01978, section 3.4) as DINO's released ``eval_knn.py``
has it (Caron et al. 2021, arXiv 2104.14294): cosine similarity, every neighbour votes for its class
with exp(similarity / T). The number is that of k = 20, T = 0.07, fixed beforehand; the other settings,
which published tables choose among on the test images, stand beside it.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.evals import results, subsets
from nepa_jax.evals.frozen import Frozen
from nepa_jax.evals.subject import Subject

NUM_NEIGHBORS = 20
TEMPERATURE = 0.07
PROTOCOL = {
    "features": "L2-normalised",
    "k": (5, 10, 20, 50, 100, 200),
    "T": (0.07, 0.1, 0.2),
    "top5": "of the classes that any neighbour votes for",
}

# A tile of similarities is at most this large, whatever the size of the sets: 128 MiB.
QUERIES = 1024
BANK = 32768
GROUP = 32  # similarities whose largest is looked at first

Pair = tuple[jax.Array, jax.Array]


class Setting(NamedTuple):
    k: int
    T: float


def evaluate(subject: Subject) -> results.Outcome:
    """kNN of the test split in the training split, at every layer."""
    subject.require_labels()
    return probe(subject.train(), subject.test())


def probe(train: Frozen, test: Frozen) -> results.Outcome:
    """Every setting at every layer of every pooling; the layer is taken by held-out training images."""
    ks = usable(PROTOCOL["k"], len(train))
    settings = [Setting(k, T) for k in ks for T in PROTOCOL["T"]]
    the_one = Setting(max(k for k in ks if k <= NUM_NEIGHBORS), TEMPERATURE)
    kept, held = subsets.hold_out(train.labels)
    rows, by_layer = [], []
    for pool, vectors in train.features.items():
        for layer, bank, queries in zip(train.layers, vectors, test.features[pool], strict=True):
            at = {"layer": layer, "pool": pool}
            found = scores(bank, train.labels, queries, test.labels, settings)
            rows += [at | row for row in found]
            number = next(row for row in found if (row["k"], row["T"]) == the_one)
            if len(held) and the_one.k <= len(kept):
                parts = bank[kept], train.labels[kept], bank[held], train.labels[held]
                number = number | {"held_out": scores(*parts, [the_one])[0]["top1"]}
            by_layer.append(at | number)
    protocol = PROTOCOL | {
        "k": ks, "number": the_one._asdict(), "train_images": len(train),
        "test_images": len(test), "held_out_images": len(held),
    }  # fmt: skip
    chance = results.chance_of(train.labels, test.labels)
    return results.outcome(protocol, rows, by_layer, chance=chance)


def usable(ks: Sequence[int], images: int) -> list[int]:
    """Numbers of neighbours that there are; says which are not.

    Raises:
        UserError: all of them are too many.
    """
    fitting = [k for k in ks if k <= images]
    if not fitting:
        raise UserError(
            f"kNN takes {min(ks)} neighbours and there are {images} training images: give more"
        )
    if len(fitting) < len(ks):
        left = ", ".join(str(k) for k in ks if k > images)
        warn(f"kNN: there are {images} training images, so k = {left} is left out")
    return fitting


def scores(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    labels: np.ndarray,
    settings: Sequence[Setting],
) -> list[results.Row]:
    """Accuracy of every setting, in one pass over the similarities.

    Args:
        bank: float32 [M, D], with labels int [M] from 0; classes may be missing.
        queries: float32 [n, D], with labels int [n].
        settings: of k at most M.

    Returns:
        Of every setting ``k``, ``T``, and ``top1``, ``top5`` in [0, 1].
    """
    ranked = ranking(bank, bank_labels, queries, settings)
    hits = ranked == labels[None, :, None]
    return [
        setting._asdict() | {"top1": float(hit[:, 0].mean()), "top5": float(hit.any(1).mean())}
        for setting, hit in zip(settings, hits, strict=True)
    ]


def ranking(
    bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, settings: Sequence[Setting]
) -> np.ndarray:
    """Of every setting and query the classes of the most votes, best first.

    Returns:
        int32 [settings, n, 5], or fewer where there are fewer classes; -1 where no neighbour votes for
        one more.
    """
    return np.concatenate(
        [ranked for _, ranked in votes(bank, bank_labels, queries, settings)], axis=1
    )[:, : len(queries)]


def votes(
    bank: np.ndarray, bank_labels: np.ndarray, queries: np.ndarray, settings: Sequence[Setting]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tile by tile of the queries: their votes [settings, Q, classes], and as :func:`ranking`."""
    tiles, labels = _bank(bank, bank_labels)
    num_classes = int(bank_labels.max()) + 1
    for tile in _tiles(_unit(queries), min(QUERIES, len(queries))):
        nearest = _nearest(jnp.asarray(tile), tiles, labels, max(k for k, _ in settings))
        yield _counted(*nearest, tuple(settings), num_classes)


def _bank(features: np.ndarray, labels: np.ndarray) -> Pair:
    """Unit vectors [tiles, m, D] and labels [tiles, m]; padding has label -1."""
    tiles = -(-len(features) // BANK)  # of one size, with little padding
    size = -(-len(features) // (tiles * GROUP)) * GROUP
    padded = np.full(-(-len(labels) // size) * size, -1, np.int32)
    padded[: len(labels)] = labels
    return jnp.asarray(_tiles(_unit(features), size)), jnp.asarray(padded.reshape(-1, size))


def _unit(x: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.maximum(norms, 1e-12)).astype(np.float32)


def _tiles(rows: np.ndarray, size: int) -> np.ndarray:
    """[n, D] -> [ceil(n / size), size, D], padded by zeros."""
    rows = np.pad(rows, ((0, -len(rows) % size), (0, 0)))
    return rows.reshape(-1, size, rows.shape[1])


@partial(jax.jit, static_argnames="k")
def _nearest(queries: jax.Array, bank: jax.Array, labels: jax.Array, k: int) -> Pair:
    """Similarities [Q, k] of the nearest, the largest first, and their labels."""

    def nearer(best: Pair, tile: Pair) -> tuple[Pair, None]:
        vectors, tile_labels = tile
        similarity = jnp.matmul(queries, vectors.T, precision=jax.lax.Precision.HIGHEST)
        similarity = jnp.where(tile_labels >= 0, similarity, -jnp.inf)
        return best_of_both(best, similarity, tile_labels), None

    start = jnp.full((len(queries), k), -jnp.inf), jnp.zeros((len(queries), k), jnp.int32)
    return jax.lax.scan(nearer, start, (bank, labels))[0]


def best_of_both(best: Pair, similarity: jax.Array, names: jax.Array) -> Pair:
    """The k nearest of those before and of one tile more of the bank.

    Args:
        best: similarities [Q, k], the largest first, and the names of whom they are to.
        similarity: to the tile, [Q, m]; -inf for what is none.
        names: of the tile's, int32 [m].
    """
    k = best[0].shape[1]
    top, places = largest(similarity, min(k, similarity.shape[1]))
    joined = jnp.concatenate([best[0], top], axis=1)
    every = jnp.concatenate([best[1], names[places]], axis=1)
    top, places = jax.lax.top_k(joined, k)
    return top, jnp.take_along_axis(every, places, axis=1)


def largest(x: jax.Array, k: int) -> Pair:
    """The k largest of each row and their places: they stand in the k groups of the largest maxima."""
    rows, size = x.shape
    if size // GROUP <= k:
        return jax.lax.top_k(x, k)
    groups = x.reshape(rows, size // GROUP, GROUP)
    _, which = jax.lax.top_k(groups.max(axis=2), k)
    found = jnp.take_along_axis(groups, which[:, :, None], axis=1).reshape(rows, k * GROUP)
    top, places = jax.lax.top_k(found, k)
    group = jnp.take_along_axis(which, places // GROUP, axis=1)
    return top, group * GROUP + places % GROUP


@partial(jax.jit, static_argnames=("settings", "num_classes"))
def _counted(
    similarity: jax.Array, voters: jax.Array, settings: tuple[Setting, ...], num_classes: int
) -> Pair:
    """Votes [settings, Q, classes] and ranks [settings, Q, 5] of neighbours [Q, k], the nearest first."""
    rows, counted = jnp.arange(len(voters))[:, None], {}
    for temperature in {T for _, T in settings}:
        votes, begun = jnp.zeros((len(voters), num_classes)), 0
        for k in sorted({k for k, T in settings if temperature == T}):
            weights = jnp.exp(similarity[:, begun:k] / temperature)
            votes, begun = votes.at[rows, voters[:, begun:k]].add(weights), k
            counted[k, temperature] = votes
    every = jnp.stack([counted[setting] for setting in settings])
    top, ranked = jax.lax.top_k(every, min(5, num_classes))
    return every, jnp.where(top > 0, ranked, -1).astype(jnp.int32)
