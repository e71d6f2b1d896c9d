"""Which record stands at each position of a run: a permutation of the set for every epoch."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from grain.experimental import index_shuffle

from nepa_jax.data.draws import stable_hash

SMALL_SET = 1 << 16  # index_shuffle searches a range of this size, for ever longer in smaller sets


@dataclass(frozen=True)
class Order:
    """Which record stands at each global position. A set's epochs follow one another.

    With `repeat=False` there is one epoch, and later positions are padding (-1).
    """

    num_examples: int
    seed: int
    shuffle: bool
    repeat: bool = True

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_examples)
        if epoch and not self.repeat:
            return -1
        if not self.shuffle:
            return offset
        if self.num_examples <= SMALL_SET:
            return int(_permutation(self.num_examples, self.seed, epoch)[offset])
        return _walk(offset, self.num_examples, _epoch_key(self.seed, epoch) % 2**32)

    def indices(self, positions: range) -> np.ndarray:
        """The records at some positions, int64 [len(positions)]."""
        return np.array([self(position) for position in positions], np.int64)


@lru_cache(maxsize=16)
def _epoch_key(seed: int, epoch: int) -> int:
    """Hashed, so that no epoch of one seed is an epoch of another: seed + epoch would be."""
    return stable_hash("order", seed, epoch)


def _walk(offset: int, num_examples: int, seed: int) -> int:
    """Where a pseudo-random permutation of range(num_examples) sends `offset`."""
    # index_shuffle is no permutation where max_index is a power of 4. An odd max_index is none,
    # and is at most one too large: walking on until inside makes a permutation again.
    last = (num_examples - 1) | 1
    offset = index_shuffle(offset, max_index=last, seed=seed, rounds=4)
    while offset >= num_examples:
        offset = index_shuffle(offset, max_index=last, seed=seed, rounds=4)
    return offset


@lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    keys = np.random.Philox(key=_epoch_key(seed, epoch)).random_raw(num_examples)
    return np.argsort(keys, kind="stable")
