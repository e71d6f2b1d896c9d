"""Self-attention, in the form that is fastest where it runs.

All forms compute the same: softmax(q kᵀ / √head_dim) v, the softmax in float32 (Vaswani et al. 2017).
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nepa_jax.models import cudnn
from nepa_jax.models.platform import platform


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """Mixes values: [B, T, H, head_dim] each -> the same; causal: token t sees tokens 0 … t only."""
    if platform() == "cpu":
        return attend_heads_first(q, k, v, causal)
    form = cudnn.implementation(q, causal) if platform() == "gpu" else None
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=form)


class Rows(NamedTuple):
    """Consecutive queries, and how many keys the last of them sees."""

    first: int
    end: int
    keys: int


def _parts(num_tokens: int, causal: bool) -> list[Rows]:
    """Under the causal mask two halves: a quarter of all pairs is never computed. More do not pay."""
    if not causal or num_tokens == 1:
        return [Rows(0, num_tokens, num_tokens)]
    half = num_tokens // 2
    return [Rows(0, half, half), Rows(half, num_tokens, num_tokens)]


class Softmax(NamedTuple):
    """Of rows of scores: their maxima, and sums of exponentials above these; float32 [B, H, rows, 1]."""

    maximum: jax.Array
    total: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend_heads_first(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """:func:`attend` as matrix products of whole heads, with a derivative of its own.

    The backward pass computes probabilities again, as FlashAttention does (Dao et al. 2022, section
    3.1): on the CPU that takes no longer than keeping [B, H, T, T], for which memory must be had.
    """
    return _forward(q, k, v, causal)[0]


Residuals = tuple[jax.Array, jax.Array, jax.Array, list[Softmax]]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> tuple[jax.Array, Residuals]:
    q, k, v = (_swapped(x) for x in (q * q.shape[-1] ** -0.5, k, v))
    mixed, softmaxes = [], []
    for rows in _parts(q.shape[2], causal):
        scores = _scores(q, k, rows, causal)
        maximum = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - maximum)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        sums = _product("bhqk,bhkd->bhqd", weights.astype(v.dtype), v[:, :, : rows.keys])
        mixed.append((sums / total).astype(v.dtype))
        softmaxes.append(Softmax(maximum, total))
    return _swapped(jnp.concatenate(mixed, axis=2)), (q, k, v, softmaxes)


def _backward(
    causal: bool, residuals: Residuals, grad: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, softmaxes = residuals
    grad = _swapped(grad)
    by_q, by_k, by_v = [], 0.0, 0.0
    for rows, softmax in zip(_parts(q.shape[2], causal), softmaxes, strict=True):
        own, seen = slice(rows.first, rows.end), slice(rows.keys)
        weights = jnp.exp(_scores(q, k, rows, causal) - softmax.maximum) / softmax.total
        by_weights = _product("bhqd,bhkd->bhqk", grad[:, :, own], v[:, :, seen])
        mean = jnp.sum(weights * by_weights, axis=-1, keepdims=True)
        by_scores = (weights * (by_weights - mean)).astype(q.dtype)
        weights, rest = weights.astype(q.dtype), q.shape[2] - rows.keys
        by_q.append(_product("bhqk,bhkd->bhqd", by_scores, k[:, :, seen]))
        by_k += _padded(_product("bhqk,bhqd->bhkd", by_scores, q[:, :, own]), rest)
        by_v += _padded(_product("bhqk,bhqd->bhkd", weights, grad[:, :, own]), rest)
    by_q = jnp.concatenate(by_q, axis=2) * q.shape[-1] ** -0.5
    return tuple(_swapped(x.astype(q.dtype)) for x in (by_q, by_k, by_v))


attend_heads_first.defvjp(_forward, _backward)


def _scores(q: jax.Array, k: jax.Array, rows: Rows, causal: bool) -> jax.Array:
    """Of some rows against the keys they see, float32 [B, H, rows, keys]."""
    scores = _product("bhqd,bhkd->bhqk", q[:, :, rows.first : rows.end], k[:, :, : rows.keys])
    if not causal:
        return scores
    later = jnp.arange(rows.keys) > jnp.arange(rows.first, rows.end)[:, None]
    return jnp.where(later, -jnp.inf, scores)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Summed in float32."""
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _swapped(x: jax.Array) -> jax.Array:
    """[B, T, H, head_dim] <-> [B, H, T, head_dim]."""
    return jnp.swapaxes(x, 1, 2)


def _padded(x: jax.Array, rows: int) -> jax.Array:
    """[B, H, keys, head_dim] with zeros for the keys behind, which no query of these saw."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, rows), (0, 0)))
