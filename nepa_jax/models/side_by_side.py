"""Images side by side in a row, where one image's few tokens would leave a TPU's tiles half empty.

There queries, keys and values lie with tokens along tiles of 128: MAE's 50 kept tokens fill 39 % of
one, those of two images 78 %. Products and norms take tokens one by one and see no difference;
attention keeps every image to itself. No number changes by more than rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np

from nepa_jax.mesh import rows_per_device
from nepa_jax.models.platform import platform

LANES = 128
CHOICES = (1, 2, 4)  # more cost more scores between images, which are thrown away


def images_per_row(images: int, tokens: int) -> int:
    """How many of a batch's images, each of so many tokens, fill tiles best; the fewest of equals.

    Those of one row lie on one device, so that none moves. Off TPUs there are no tiles to fill.
    """
    if platform() != "tpu":
        return 1
    here = rows_per_device(images)
    fitting = (count for count in CHOICES if here % count == 0)
    return min(fitting, key=lambda count: -(-count * tokens // LANES) / count)


def attend_apart(q: jax.Array, k: jax.Array, v: jax.Array, images: int) -> jax.Array:
    """Attention inside of each of the ``images`` of a row: [rows, images · T, H, head_dim].

    Computes the scores of whole rows and leaves out those between images.
    """
    tokens = q.shape[1] // images
    same = np.kron(np.eye(images, dtype=bool), np.ones((tokens, tokens), bool))
    return jax.nn.dot_product_attention(q, k, v, mask=jnp.asarray(same)[None, None])
