"""Where heads get their rows from: features on disk, or images through the frozen encoder.

Both are a function of the step, as batches of a run are: the order is permutation(seed, epoch), the
same for any number of hosts and devices. A batch is made whole by rows of weight 0.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from nepa_jax.data.batches import Made
from nepa_jax.data.draws import stable_hash
from nepa_jax.data.loader import LoaderConfig, iter_epoch
from nepa_jax.evals.features import POOLS, at_layers, on_all_devices
from nepa_jax.evals.heads.grids import Rows
from nepa_jax.loading import Loaded
from nepa_jax.mesh import Part, host_part, put_batch, put_layers
from nepa_jax.objectives.base import Objective

SEED = 0
THREADS = 4  # that gather rows
BLOCK = 64  # rows
SMALL_SET = 1 << 16  # rows, which mostly stay in memory once they were read
CHUNK = 64  # images that a device encodes at a time


@dataclass(frozen=True)
class Stored:
    """Rows of arrays on disk or in memory, whole on every host."""

    layers: Sequence[np.ndarray]  # float32 [n, …] each
    labels: np.ndarray  # int32 [n]
    places: np.ndarray  # of the rows that are used, int [m]
    mesh: Mesh

    def shuffled(self, batch_size: int, step: int) -> Rows:
        """The rows of a step; what is left of an epoch after its last whole batch is dropped.

        Inside of a batch rows stand as they lie on disk: their order means nothing there.
        """
        epoch, place = divmod(step, len(self.places) // batch_size)
        chosen = epoch_order(len(self.places), epoch)[place * batch_size :][:batch_size]
        return self._rows(np.sort(self.places[chosen]), batch_size)

    def in_order(self, batch_size: int) -> Iterator[Rows]:
        """Every row once."""
        for start in range(0, len(self.places), batch_size):
            yield self._rows(self.places[start : start + batch_size], batch_size)

    def _rows(self, places: np.ndarray, batch_size: int) -> Rows:
        mine, counted = own_rows(places, batch_size, host_part(self.mesh))
        inputs = np.empty((len(self.layers), len(mine), *self.layers[0].shape[1:]), np.float32)

        def gather(layer: int) -> None:
            np.take(self.layers[layer], mine, axis=0, out=inputs[layer], mode="clip")

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(gather, range(len(self.layers))))
        small = {"label": self.labels[mine].astype(np.int32), "weight": counted}
        put = put_batch(small, self.mesh)
        return Rows(put_layers(inputs, self.mesh), put["label"], put["weight"])


@lru_cache(maxsize=2)
def epoch_order(rows: int, epoch: int) -> np.ndarray:
    """A permutation of the rows, int [rows].

    Large sets are shuffled in blocks, for a disk that would read all of them for a batch of rows here
    and there. Inside of a block rows are the prepared set's, which is shuffled itself.
    """
    block = BLOCK if rows > SMALL_SET else 1
    key = stable_hash("heads", SEED, epoch)
    draws = np.random.Philox(key=key).random_raw(-(-rows // block))
    starts = np.argsort(draws, kind="stable") * block
    order = (starts[:, None] + np.arange(block)).reshape(-1)
    return order[order < rows]


def own_rows(places: np.ndarray, batch_size: int, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """This host's block of a batch of places, and 1 for each; 0 for those that make it whole."""
    whole = part.count * len(part.shards)
    rows = -(-batch_size // whole) * whole
    padded = np.full(rows, places[0])
    padded[: len(places)] = places
    counted = np.zeros(rows, np.float32)
    counted[: len(places)] = 1.0
    size = rows // part.count
    mine = slice(part.index * size, (part.index + 1) * size)
    return padded[mine], counted[mine]


@dataclass(frozen=True)
class Streamed:
    """Rows of images that go through the encoder: pooled vectors, or all tokens (pool ``none``)."""

    objective: Objective
    model: nnx.Module  # on all devices
    pool: str
    layers: tuple[int, ...]
    mesh: Mesh

    @classmethod
    def of(cls, loaded: Loaded, pool: str, layers: tuple[int, ...], mesh: Mesh) -> "Streamed":
        """Puts the encoder on all devices."""
        model = on_all_devices(loaded.model, mesh)
        return cls(loaded.objective, model, pool, layers, mesh)

    def put(self, made: Made, counts: np.ndarray) -> dict[str, jax.Array]:
        """This host's rows on the devices, made whole.

        Args:
            made: of a loader.
            counts: bool [records], whether a record counts.
        """
        index = made.account.index
        counted = (counts[index] & (index >= 0)).astype(np.float32)
        label = np.maximum(made.batch["label"], 0)
        rows = {"image": made.batch["image"], "label": label, "weight": counted}
        whole = self._at_a_time(len(index))
        return put_batch({name: filled_up(r, whole) for name, r in rows.items()}, self.mesh)

    def encoded(self, put: dict[str, jax.Array]) -> Rows:
        """What :meth:`put` gave, through the encoder; all hosts call it in the same order."""
        part = host_part(self.mesh)
        rows = len(put["weight"]) // part.count
        inputs = encode_in_parts(
            self.objective, self.model, put["image"], self.pool, self.layers,
            parts=rows // self._at_a_time(rows),
        )  # fmt: skip
        return Rows(inputs, put["label"], put["weight"])

    def in_order(self, data: LoaderConfig, counts: np.ndarray, first: int | None) -> Iterator[Rows]:
        """Every image of a split once, or of its first ones; as :func:`iter_epoch` takes them."""
        part = host_part(self.mesh)
        for made in iter_epoch(data, part.index, part.count, first):
            yield self.encoded(self.put(made, counts))

    def _at_a_time(self, rows: int) -> int:
        """Images of this host that go through the encoder together, of so many in a batch."""
        shards = len(host_part(self.mesh).shards)
        of_device = -(-rows // shards)
        return shards * -(-of_device // -(-of_device // CHUNK))


def filled_up(values: np.ndarray, multiple: int) -> np.ndarray:
    """Zeros after the last row, until the rows are a multiple."""
    missing = -len(values) % multiple
    return np.pad(values, ((0, missing), *((0, 0),) * (values.ndim - 1)))


@partial(jax.jit, static_argnames=("objective", "pool", "layers", "parts"))
def encode_in_parts(
    objective: Objective,
    model: nnx.Module,
    images: jax.Array,
    pool: str,
    layers: tuple[int, ...],
    parts: int,
) -> jax.Array:
    """Images [B, H, W, C] -> float32 [layers, B, …], so many parts of the batch one after the other.

    Every part takes rows from every device, so that none move.
    """

    def encode(images: jax.Array) -> jax.Array:
        return POOLS[pool](at_layers(objective, model, images, layers))

    rows = images.reshape(-1, parts, *images.shape[1:]).swapaxes(0, 1)
    joined = jnp.moveaxis(jax.lax.map(encode, rows), 0, 2)  # [layers, b, parts, …]
    return joined.reshape(len(layers), -1, *joined.shape[3:])


class Ahead:
    """Makes what a step needs while the step before runs."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: tuple[int, Future[Any]] | None = None

    def __call__(self, step: int) -> Any:
        """What ``make`` gives for a step; the next one's is begun."""
        ahead, self._next = self._next, None
        future = ahead[1] if ahead and ahead[0] == step else self._pool.submit(self._make, step)
        made = future.result()
        self._next = step + 1, self._pool.submit(self._make, step + 1)
        return made

    def close(self) -> None:
        """Waits for what is under way."""
        self._pool.shutdown(wait=True, cancel_futures=True)
