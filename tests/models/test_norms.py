"""LayerNorm with a derivative of its own, alone and before a rotation, against the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from forms import assert_same_form

from nepa_jax.models.norms import Affine, normalize
from nepa_jax.models.rope import normalize_and_rotate, patch_coords, rope_table, rotate, turned

EPS = 1e-6
AFFINES = {"none": (False, False), "scale": (True, False), "scale and bias": (True, True)}
DTYPES = ["float32", "bfloat16"]


def operands(affine: str, dtype: str, width: int = 16):
    """Inputs [2, 12, 3, width] whose mean is several times their spread, and what follows the norm."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = 3.0 + jax.random.normal(keys[0], (2, 12, 3, width))
    parts = [1.0 + 0.3 * jax.random.normal(key, (width,)) for key in keys[1:]]
    kept = (part if on else None for part, on in zip(parts, AFFINES[affine], strict=True))
    return x.astype(dtype), Affine(*kept)


def plain_norm(x, affine):
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + EPS)
    normed = normed if affine.scale is None else normed * affine.scale
    return normed if affine.bias is None else normed + affine.bias


def plain_rotate(x, table):
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    quarter = jnp.concatenate([-second, first], axis=-1)
    return x * table.cos[:, None] + quarter * table.sin[:, None]


TABLE = rope_table(patch_coords((3, 4)), 16, 100.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", AFFINES)
def test_norm_is_the_plain_one(affine, dtype):
    assert_same_form(lambda *args: normalize(*args, EPS), plain_norm, operands(affine, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_is_the_plain_one(dtype):
    x, _ = operands("none", dtype)
    assert_same_form(lambda x: rotate(x, TABLE), lambda x: plain_rotate(x, TABLE), (x,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", AFFINES)
def test_norm_and_rotation_are_the_plain_ones(affine, dtype):
    def plain(x, affine):
        return plain_rotate(plain_norm(x, affine), TABLE).astype(x.dtype)

    def form(x, affine):
        return normalize_and_rotate(x, affine, TABLE, EPS)

    assert_same_form(form, plain, operands(affine, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quarter_turn_is_exact(dtype):
    x, _ = operands("none", dtype)
    x = x * 1.2345678
    wanted = np.concatenate([-x[..., 8:], x[..., :8]], axis=-1)
    np.testing.assert_array_equal(np.asarray(turned(x)), wanted)
