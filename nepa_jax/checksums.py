"""Checksums of arrays that do not depend on how they are spread over devices and hosts."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax


def checksums(leaves: Mapping[str, jax.Array]) -> jax.Array:
    """The checksum of every leaf: uint32 [leaves, 2], in the order of the sorted names."""
    return _stack([checksum(leaves[name]) for name in sorted(leaves)])


@jax.jit
def _stack(sums: list[jax.Array]) -> jax.Array:
    return jnp.stack(sums)


@jax.jit  # each leaf by itself: parameters, moments and average share programs
def checksum(array: jax.Array) -> jax.Array:
    """Sums modulo 2³² of two hashes of each element's bits and place: uint32 [2].

    Integer sums are exact in any order, so every sharding gives the same, and each device reads
    its own part alone. Both hashes are one-to-one in an element's bits: one changed element, be
    it by a bit, always changes both sums. Other damage goes unnoticed once in 2⁶⁴.

    Args:
        array: of any shape; at most 4 bytes per element.
    """
    first = _mixed(_words(array) ^ (_places(array.shape) * jnp.uint32(0x9E3779B1)))
    second = (first ^ (first >> 16)) * jnp.uint32(0xC2B2AE35)
    # One pass for both sums; first within rows, which a CPU's cores share among them.
    by_row = _sum((first, second), tuple(range(1, array.ndim)))
    return jnp.stack(_sum(by_row, tuple(range(min(array.ndim, 1)))))


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


def _mixed(words: jax.Array) -> jax.Array:
    """A product with an odd number between shifted exclusive ors: each step can be undone."""
    words = (words ^ (words >> 15)) * jnp.uint32(0x85EBCA6B)
    return words ^ (words >> 13)


Pair = tuple[jax.Array, jax.Array]


def _sum(pair: Pair, axes: tuple[int, ...]) -> Pair:
    def add(sums: Pair, more: Pair) -> Pair:
        return sums[0] + more[0], sums[1] + more[1]

    return lax.reduce(pair, (jnp.uint32(0), jnp.uint32(0)), add, axes)
