"""What the loop is fed: the batch, described once, and on the devices before its step wants it."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np
from jax.sharding import Mesh

from nepa_jax.data.loader import Loader
from nepa_jax.data.settings import LoaderConfig
from nepa_jax.mesh import batch_sharding, put_batch
from nepa_jax.objectives.base import Batch


def abstract_batch(
    data: LoaderConfig, labelled: bool, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Every array of a run's batch, of all hosts together, and how it lies on the devices.

    ``image`` uint8 [B, H, W, C]; ``label`` int32 [B], of labelled sets; ``row`` int32 [B], the place
    in the batch, on which the randomness of a row depends.
    """
    rows = (data.batch_size,)
    arrays = {
        "image": ((*rows, *data.image_size, data.channels), np.uint8),
        "row": (rows, np.int32),
    }
    if labelled:
        arrays["label"] = (rows, np.int32)
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(*array, sharding=sharding) for name, array in arrays.items()}


class DeviceBatches:
    """Batches on the devices; the next one is loaded and sent while a step runs."""

    def __init__(self, loader: Loader, mesh: Mesh):
        self._loader = loader
        self._mesh = mesh
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="device_batches")
        self._next: tuple[int, Future[Batch]] | None = None
        self.waited_s = 0.0  # in all

    def batch(self, step: int) -> Batch:
        """The global batch of a step; see :func:`abstract_batch`."""
        began = time.perf_counter()
        ahead, self._next = self._next, None
        future = ahead[1] if ahead and ahead[0] == step else self._pool.submit(self._load, step)
        batch = future.result()
        self._next = step + 1, self._pool.submit(self._load, step + 1)
        self.waited_s += time.perf_counter() - began
        return batch

    def _load(self, step: int) -> Batch:
        return put_batch(self._loader.batch(step), self._mesh)

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
