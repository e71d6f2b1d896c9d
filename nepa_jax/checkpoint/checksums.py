"""Checksums of arrays that do not depend on how they are spread over devices and hosts."""

from collections.abc import Mapping
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCK = 2**20  # elements of an array in this host's memory that are looked at together


def checksums(leaves: Mapping[str, jax.Array]) -> jax.Array:
    """Of every leaf: uint32 [leaves, 2], in the order of the sorted names.

    Sums modulo 2³² of two hashes of each element's bits and place. Integer sums are exact in any
    order, so every sharding gives the same, and each device reads its own part alone. Both hashes
    are one-to-one in an element's bits: one changed element, be it by a bit, always changes both
    sums. Other damage goes unnoticed once in 2⁶⁴.

    Args:
        leaves: arrays of any shapes, at most 4 bytes per element.
    """
    return _of_devices([leaves[name] for name in sorted(leaves)])


@jax.jit  # one program for all: to start ninety takes longer than to run them
def _of_devices(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([_of_array(array) for array in arrays])


@jax.jit  # arrays of one shape share what is traced
def _of_array(array: jax.Array) -> jax.Array:
    # One pass for both sums; first within rows, which a CPU's cores share among them.
    by_row = _sum(_hashes(_words(array), _places(array.shape)), tuple(range(1, array.ndim)))
    return jnp.stack(_sum(by_row, tuple(range(min(array.ndim, 1)))))


def checksum(array: np.ndarray, first: int = 0) -> np.ndarray:
    """The same of one array in this host's memory, uint32 [2]; modulo 2³² the sum of its parts'.

    Args:
        array: in the order of its axes; of a part, consecutive elements of the whole.
        first: the flat index of a part's first element in the whole.
    """
    # Block by block: one program serves all shapes, and nothing is copied as a whole.
    words = np.ascontiguousarray(array).reshape(-1).view(f"uint{8 * array.dtype.itemsize}")
    bounds = sorted({0, *range(_aligned(words), words.size, BLOCK), words.size})
    device, sums = jax.local_devices()[0], [np.zeros(2, np.uint32)]
    for start, end in pairwise(bounds):
        size = end - start
        block = np.pad(words[start:end], (0, BLOCK - size)) if size < BLOCK else words[start:end]
        sums.append(
            _of_block(jax.device_put(block, device), np.uint32((first + start) % 2**32), size)
        )
    return np.sum(jax.device_get(sums), axis=0, dtype=np.uint32)


def _aligned(words: np.ndarray) -> int:
    """Where the blocks begin that jax takes over on a CPU; it copies others."""
    return -words.ctypes.data % 64 // words.itemsize


@jax.jit
def _of_block(words: jax.Array, start: jax.Array, count: jax.Array) -> jax.Array:
    """Of a part of a flat array that begins at ``start`` and holds ``count`` elements."""
    shape = (64, BLOCK // 64)
    places = _places(shape)
    pair = _hashes(words.astype(jnp.uint32).reshape(shape), places + jnp.uint32(start))
    inside = places < jnp.uint32(count)
    by_row = _sum(tuple(jnp.where(inside, part, 0) for part in pair), (1,))
    return jnp.stack(_sum(by_row, (0,)))


def _words(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    bits = lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}")
    return bits.astype(jnp.uint32)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The flat index of every element modulo 2³², uint32."""
    places, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        places += lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return places


Pair = tuple[jax.Array, jax.Array]


def _hashes(words: jax.Array, places: jax.Array) -> Pair:
    """Of every element, by products with odd numbers and shifted exclusive ors: all can be undone."""
    first = words ^ (places * jnp.uint32(0x9E3779B1))
    first = (first ^ (first >> 15)) * jnp.uint32(0x85EBCA6B)
    first ^= first >> 13
    return first, (first ^ (first >> 16)) * jnp.uint32(0xC2B2AE35)


def _sum(pair: Pair, axes: tuple[int, ...]) -> Pair:
    def add(sums: Pair, more: Pair) -> Pair:
        return sums[0] + more[0], sums[1] + more[1]

    return lax.reduce(pair, (jnp.uint32(0), jnp.uint32(0)), add, axes)
