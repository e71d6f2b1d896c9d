"""Whether a form with a derivative of its own is the plain one."""

import jax
import jax.numpy as jnp
import numpy as np

BARS = {"float32": 1e-6, "bfloat16": 2e-2}  # of the largest number of an array


def assert_same_form(form, plain, operands):
    """Values and gradients, of random gradients of the outputs; the first operand's dtype counts."""
    bar = BARS[operands[0].dtype.name]
    found, pull_back = jax.vjp(form, *operands)
    wanted, plain_pull_back = jax.vjp(plain, *operands)
    assert_close(found, wanted, bar)
    leaves, tree = jax.tree.flatten(found)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    grads = [jax.random.normal(k, y.shape, y.dtype) for k, y in zip(keys, leaves, strict=True)]
    grads = jax.tree.unflatten(tree, grads)
    assert_close(pull_back(grads), plain_pull_back(grads), bar)


def assert_close(found, wanted, bar):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for f, w in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (f.shape, f.dtype) == (w.shape, w.dtype)
        f, w = np.asarray(f, np.float64), np.asarray(w.astype(jnp.float32), np.float64)
        np.testing.assert_allclose(f, w, rtol=0, atol=bar * np.abs(w).max())
