"""Random erasing (arXiv 1708.04896) as timm does it in its mode `pixel`, on the device.

There it can be exact: the noise is normal after the normalisation of pixels, and a third of it would
not fit into those of 8 bits where the model takes them as [-1, 1].
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

AREA = (0.02, 1 / 3)  # of the image
LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
TRIES = 10  # at a box that fits


class Draws(NamedTuple):
    """What was drawn for one image, each uniform in [0, 1)."""

    erases: jax.Array  # []
    area: jax.Array  # [TRIES]
    aspect: jax.Array  # [TRIES]
    place: jax.Array  # [2], down and across


def erase(
    images: jax.Array,
    keys: jax.Array,
    probability: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> jax.Array:
    """Fills, with this probability, one box of an image with noise.

    Args:
        images: [B, H, W, C], 0 to 255.
        keys: one of each image [B].
        mean, std: by which the model normalises pixels of 0 to 1; by them the noise becomes
            standard normal.

    Returns:
        float32 [B, H, W, C]; the noise may lie outside of 0 to 255.
    """

    def filled(image: jax.Array, key: jax.Array) -> jax.Array:
        noise_key, *draw_keys = jax.random.split(key, 5)
        shapes = ((), (TRIES,), (TRIES,), (2,))
        draws = Draws(*map(jax.random.uniform, draw_keys, shapes))
        noise = jax.random.normal(noise_key, image.shape)
        noise = 255.0 * (jnp.array(mean) + jnp.array(std) * noise)
        return jnp.where(box(draws, image.shape[:2], probability)[..., None], noise, image)

    return jax.vmap(filled)(images, keys)


def box(draws: Draws, size: tuple[int, int], probability: float) -> jax.Array:
    """What is erased of an image, bool [H, W]: the first of the tried boxes that is smaller than it.

    A box has 2 % to a third of the area, and an aspect ratio of 0.3 to 1 / 0.3.
    """
    area = math.prod(size) * (AREA[0] + (AREA[1] - AREA[0]) * draws.area)
    aspect = jnp.exp(LOG_ASPECT[0] + (LOG_ASPECT[1] - LOG_ASPECT[0]) * draws.aspect)
    sides = jnp.round(jnp.sqrt(jnp.stack([area * aspect, area / aspect])))  # half to even
    fits = jnp.all(sides < jnp.array(size)[:, None], axis=0)
    sides = sides[:, jnp.argmax(fits)]
    inside = jnp.any(fits) & (draws.erases < probability)
    for axis, length in enumerate(size):
        start = jnp.floor(draws.place[axis] * (length - sides[axis] + 1))
        at = jnp.expand_dims(jnp.arange(length), 1 - axis)
        inside &= (at >= start) & (at < start + sides[axis])
    return inside
