"""Random numbers as functions of what they are for, the seed and the position: of nothing else."""

import hashlib
from functools import lru_cache

import numpy as np


def stable_hash(*parts: str | int) -> int:
    """64 bits that depend on all parts; the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def example_rng(purpose: str, seed: int, position: int) -> np.random.Generator:
    """The random stream of one example: a function of the purpose, the seed and the position."""
    # The position goes above the 2**64 blocks that one stream can count through.
    counter = np.array([0, position, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=_stream_key(purpose, seed), counter=counter))


@lru_cache(maxsize=16)
def _stream_key(purpose: str, seed: int) -> int:
    return stable_hash(purpose, seed)
