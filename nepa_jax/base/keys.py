"""Random keys by the name of what they are for."""

import zlib

import jax


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The key of one purpose, the same on every machine.

    What is folded in is a hash of the name: a small number would give one of the keys that
    ``split``, ``nnx.Rngs`` or a row's number lead to.
    """
    return jax.random.fold_in(key, zlib.crc32(name.encode()))
