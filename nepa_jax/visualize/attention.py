"""Where one patch looks: its attention in every layer and head (as in arXiv 2512.16922).

Computed again from the model's own parts, for one image and one query, so that the model that is
trained needs no way to give its weights away.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nepa_jax.models.layers import Attention, Block
from nepa_jax.models.rope import RopeTable
from nepa_jax.models.vit import ViT
from nepa_jax.visualize import sheet, similarity, style

SHARE = ScalarMappable(Normalize(0, 1), "viridis")  # of a map's largest weight
SIDE = 224  # px, of a map at most; smaller ones keep the image's own size
WIDTH = 8.5  # inches, of all heads


class Query(NamedTuple):
    """Whose attention is drawn."""

    image: np.ndarray  # uint8 [H, W, C]
    patch: int  # in raster order
    name: str = "image"


def draw(
    vit: ViT, query: Query, causal: bool, layers: Sequence[int] = (), head: int | None = None
) -> Figure:
    """Draws a row for each layer: the mean of the heads, and each head.

    Args:
        query: one patch of one image.
        causal: whether the model attends under the causal mask.
        layers: 1 … depth; none: all.
        head: that one alone; None: all, and their mean.
    """
    layers = layers or range(1, vit.config.depth + 1)
    found = attention_weights(vit, query.image[None], jnp.array([1 + query.patch]), causal)
    weights = np.asarray(found)[np.array(layers) - 1, 0, :, 0]  # [layers, H, T]
    columns = {f"head {n}": weights[:, n] for n in range(weights.shape[1])}
    columns = {"mean": weights.mean(axis=1)} | columns
    if head is not None:
        columns = {f"head {head}": columns[f"head {head}"]}
    grid = vit.grid(query.image[None])
    side = max(1, min(vit.config.patch_size, SIDE // max(grid)))
    if causal:
        columns = {name: _seen(each, query.patch) for name, each in columns.items()}
    rows = [[_map(each[n], grid, side) for each in columns.values()] for n in range(len(layers))]
    labels = [
        f"layer {layer}\n{100 * share:.0f} % on class"
        for layer, share in zip(layers, next(iter(columns.values()))[:, 0], strict=True)
    ]
    return _drawn(query, grid, side, dict(zip(labels, rows, strict=True)), list(columns))


def _seen(weights: np.ndarray, patch: int) -> np.ndarray:
    """NaN for the tokens [layers, T] behind a patch, which a causal query cannot see."""
    return np.where(np.arange(weights.shape[1]) > 1 + patch, np.nan, weights)


def _map(weights: np.ndarray, grid: tuple[int, int], side: int) -> np.ndarray:
    """Of the patches among some tokens [T], by the largest: uint8 [H, W, 3]."""
    patches = weights[1:].reshape(grid)
    return style.coloured(patches / max(np.nanmax(patches), 1e-30), SHARE, side)


def _drawn(
    query: Query, grid: tuple[int, int], side: int, rows: Mapping[str, list[np.ndarray]],
    columns: Sequence[str],
) -> Figure:  # fmt: skip
    """Rows by their labels, with the image in front of the first, and the patch framed in all."""
    place, size = divmod(query.patch, grid[1]), (grid[1] * side, grid[0] * side)
    image = cv2.resize(style.rgb(query.image), size, interpolation=cv2.INTER_AREA)
    cells = [[None if n else image, *row] for n, row in enumerate(rows.values())]
    frames = [
        sheet.Frame(n, m, place, side)
        for n, row in enumerate(cells)
        for m, cell in enumerate(row)
        if cell is not None
    ]
    inches = float(np.clip(WIDTH / len(cells[0]), 0.5, 2.0))
    made, axes = sheet.draw(
        sheet.Sheet(cells, list(rows), [query.name, *columns], frames=frames, side=inches),
        f"Attention of patch {query.patch} (row {place[0]}, column {place[1]} of {grid[0]} x {grid[1]}), "
        "each map by its own largest weight; gray: what a causal query cannot see. At the left: what goes "
        "to the class token, which is in no map",
    )
    bar = made.colorbar(SHARE, ax=axes, shrink=0.4, aspect=30, ticks=(0, 1))
    bar.ax.set_yticklabels(["0", "largest"], fontsize=7)
    return made


def choose_patch(image: np.ndarray, patch_size: int) -> int:
    """The last of the three patches of most contrast: under a causal mask it sees the most."""
    return int(similarity.choose_queries(image, patch_size)[-1])


@partial(jax.jit, static_argnames="causal")
def attention_weights(vit: ViT, images: jax.Array, queries: jax.Array, causal: bool) -> jax.Array:
    """What some tokens attend to, in every block: float32 [depth, B, H, Q, T]; each row sums to 1.

    Args:
        images: uint8 [B, H, W, C].
        queries: int [Q], tokens: 0 is the class token, 1 + n patch n.
        causal: token t sees tokens 0 … t only.
    """
    rope = vit.rope(vit.grid(images))
    inputs = vit.hidden_states(images, causal=causal)[:-1].astype(vit.config.residual_dtype)

    def of_layer(layer: tuple[Block, jax.Array]) -> jax.Array:
        block, x = layer
        return weights_of(block.attn, block.norm1(x), rope, queries, causal)

    return jax.lax.map(of_layer, (vit.blocks, inputs))


def weights_of(
    attention: Attention, x: jax.Array, rope: RopeTable | None, queries: jax.Array, causal: bool
) -> jax.Array:
    """The softmax of one layer for some queries: x [B, T, D] -> float32 [B, H, Q, T]."""
    q, k, _ = attention.qkv.parts(x)
    q, k = (
        attention.prepared(q, attention.q_norm, rope),
        attention.prepared(k, attention.k_norm, rope),
    )
    scores = jnp.einsum(
        "bqhd,bkhd->bhqk", q[:, queries], k, preferred_element_type=jnp.float32
    ) * (q.shape[-1] ** -0.5)  # fmt: skip
    later = jnp.arange(x.shape[1]) > queries[:, None]
    return jax.nn.softmax(jnp.where(causal & later, -jnp.inf, scores), axis=-1)
