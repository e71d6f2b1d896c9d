"""Weighted nearest-neighbour classification of frozen features."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from nepa_jax.base.errors import UserError

# The protocol of Wu et al. 2018 (arXiv 1805.01978, section 3.4) with the number of neighbours of
# Caron et al. 2021 (DINO, arXiv 2104.14294, section 4.1 and released eval_knn.py).
NUM_NEIGHBORS = 20
TEMPERATURE = 0.07

# A tile of similarities is at most this large, whatever the size of the sets: 128 MiB.
QUERIES = 1024
BANK = 32768

Pair = tuple[jax.Array, jax.Array]


def predict(
    train_features: np.ndarray, train_labels: np.ndarray, features: np.ndarray
) -> np.ndarray:
    """Classifies by the 20 nearest neighbours in cosine, each voting with exp(cosine / 0.07).

    Args:
        train_features: float32 [M, D], with labels int [M] from 0.
        features: float32 [n, D].

    Returns:
        int32 [n].

    Raises:
        UserError: fewer training images than neighbours.
    """
    if len(train_features) < NUM_NEIGHBORS:
        raise UserError(
            f"kNN takes {NUM_NEIGHBORS} neighbours and there are {len(train_features)} training "
            "images: give more"
        )
    bank, labels = _bank(train_features, train_labels)
    num_classes = int(train_labels.max()) + 1
    queries = _tiles(_unit(features), min(QUERIES, len(features)))
    votes = [_classify(jnp.asarray(tile), bank, labels, num_classes) for tile in queries]
    return np.concatenate(votes)[: len(features)]


def _bank(features: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Unit vectors [tiles, m, D] and labels [tiles, m]; padding has label -1."""
    size = min(BANK, len(features))
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


@partial(jax.jit, static_argnames="num_classes")
def _classify(
    queries: jax.Array, bank: jax.Array, labels: jax.Array, num_classes: int
) -> jax.Array:
    """Queries [Q, D] against the bank, one tile after the other -> int32 [Q]."""

    def nearest(best: Pair, tile: Pair) -> tuple[Pair, None]:
        similarity = jnp.where(tile[1] >= 0, queries @ tile[0].T, -jnp.inf)
        everyone = jnp.broadcast_to(tile[1], similarity.shape)
        joined = jnp.concatenate([best[0], similarity], axis=1)
        top, places = jax.lax.top_k(joined, NUM_NEIGHBORS)
        voters = jnp.concatenate([best[1], everyone], axis=1)
        return (top, jnp.take_along_axis(voters, places, axis=1)), None

    shape = (len(queries), NUM_NEIGHBORS)
    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    (top, voters), _ = jax.lax.scan(nearest, start, (bank, labels))
    weights = jnp.exp(top / TEMPERATURE)
    rows = jnp.arange(len(queries))[:, None]
    votes = jnp.zeros((len(queries), num_classes)).at[rows, voters].add(weights)
    return jnp.argmax(votes, axis=1).astype(jnp.int32)
