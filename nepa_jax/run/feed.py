"""What the loop is fed: batches on the devices before their step wants them."""

import time
from concurrent.futures import Future, ThreadPoolExecutor

from jax.sharding import Mesh

from nepa_jax.data.loader import Loader
from nepa_jax.mesh import put_batch
from nepa_jax.objectives.base import Batch


class DeviceBatches:
    """Batches on the devices; the next one is loaded and sent while a step runs."""

    def __init__(self, loader: Loader, mesh: Mesh):
        self._loader = loader
        self._mesh = mesh
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="device_batches")
        self._next: tuple[int, Future[Batch]] | None = None
        self.waited_s = 0.0  # in all

    def batch(self, step: int) -> Batch:
        """The global batch of a step; see ``step.abstract_batch``."""
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
