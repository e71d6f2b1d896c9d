"""Whether cuDNN's attention can be had: it is the fastest on Nvidia's GPUs, where it works.

It takes 16-bit numbers and heads of a multiple of 8, at most 128 wide (256 from Hopper on); which else
differs by release of jax, cuDNN and GPU. So it is tried: compiled once for each shape, forward and
backward, as jax itself checks no earlier.
"""

from functools import cache

import jax
import jax.numpy as jnp

from nepa_jax.base.progress import warn

TRIED = "cudnn"  # of jax.nn.dot_product_attention


def implementation(q: jax.Array, causal: bool) -> str | None:
    """What ``jax.nn.dot_product_attention`` is to use on a GPU for queries [B, T, H, head_dim].

    None is XLA's own. Where 16-bit numbers find no cuDNN a line says so and why, once for each shape.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return None
    return TRIED if _works(q.shape[1:], str(q.dtype), causal) else None


@cache
def _works(shape: tuple[int, ...], dtype: str, causal: bool) -> bool:
    def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=TRIED)
        return jnp.sum(mixed.astype(jnp.float32))

    image = jax.ShapeDtypeStruct((1, *shape), dtype)
    try:
        # Outside of the mesh that the caller may be traced in: one device tells for all.
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
            jax.jit(jax.grad(total, (0, 1, 2))).lower(image, image, image).compile()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        warn(f"attention {list(shape)} by XLA, not cuDNN ({reason})")
        return False
    return True
