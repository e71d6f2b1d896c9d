"""How well NEPA foresees each patch, and what each of its predictions resembles.

The maps of cosine over the image are those of the paper (arXiv 2512.16922), which shows them for
natural images.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from nepa_jax.objectives import nepa
from nepa_jax.visualize import style

NUM_QUERIES = 3


def draw(model: nepa.NEPA, images: np.ndarray, path: str | Path) -> Path:
    """Draws, for each image, the cosine at every patch and what three predictions resemble.

    Args:
        images: uint8 [n, H, W, 3]; one row each, four to six read well.
        path: where the PNG goes.
    """
    similarity = np.asarray(prediction_similarity(model, jnp.asarray(images)))
    grid = model.vit.grid(images)
    columns = 2 + NUM_QUERIES
    made = style.figure(1.75 * columns + 0.8, 1.75 * len(images) + 0.8)
    all_axes = made.subplots(len(images), columns, squeeze=False)
    for row, image, cosines in zip(all_axes, images, similarity, strict=True):
        drawn = _draw_row(row, image, cosines, grid)
    _headings(all_axes[0])
    made.colorbar(drawn, ax=all_axes, shrink=0.6, label="cosine")
    made.suptitle(_summary(similarity), fontsize=10)
    return style.save(made, path)


@jax.jit
def prediction_similarity(model: nepa.NEPA, images: jax.Array) -> jax.Array:
    """Cosine of the prediction for patch t with the embedding of patch s: float32 [B, t, s]."""
    features = nepa.encode(model, images)
    # The class token predicts patch 0, patch t - 1 predicts patch t.
    predictions = jnp.concatenate([features.cls[:, None], features.patches[:, :-1]], axis=1)
    embeddings = model.vit.embed(model.vit.patches(images))
    return jnp.einsum("btd,bsd->bts", nepa.unit(predictions), nepa.unit(embeddings))


def choose_queries(image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """The patches of most contrast, in raster order: int [3]. Flat ones would show nothing."""
    rows, columns = grid
    tiles = image.astype(float).reshape(rows, image.shape[0] // rows, columns, -1, 3)
    contrast = tiles.std(axis=(1, 3, 4)).reshape(-1)
    return np.sort(np.argsort(-contrast, kind="stable")[:NUM_QUERIES])


def _draw_row(
    row: np.ndarray, image: np.ndarray, cosines: np.ndarray, grid: tuple[int, int]
) -> AxesImage:
    _draw_image(row[0], image)
    drawn = _draw_map(row[1], np.diagonal(cosines), image, grid)
    for axes, query in zip(row[2:], choose_queries(image, grid), strict=True):
        _draw_map(axes, cosines[query], image, grid)
        _mark(axes, query, image, grid)
    return drawn


def _draw_image(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest")
    style.bare(axes)


def _draw_map(
    axes: Axes, values: np.ndarray, image: np.ndarray, grid: tuple[int, int]
) -> AxesImage:
    """A value per patch [N] over the image's own frame."""
    height, width = image.shape[:2]
    style.bare(axes)
    return axes.imshow(
        values.reshape(grid), cmap="RdBu_r", vmin=-1, vmax=1, extent=(0, width, height, 0)
    )


def _mark(axes: Axes, patch: int, image: np.ndarray, grid: tuple[int, int]) -> None:
    """A frame around one patch."""
    height, width = image.shape[0] / grid[0], image.shape[1] / grid[1]
    corner = (patch % grid[1] * width, patch // grid[1] * height)
    axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="black", linewidth=1.8))


def _headings(row: np.ndarray) -> None:
    texts = ["image", "prediction ↔ its patch"]
    texts += ["prediction for □ ↔ all"] * NUM_QUERIES
    for axes, text in zip(row, texts, strict=True):
        axes.set_title(text, fontsize=8.5)


def _summary(similarity: np.ndarray) -> str:
    own = np.diagonal(similarity, axis1=1, axis2=2)
    others = (similarity.sum(axis=2) - own) / (similarity.shape[2] - 1)
    return (
        f"NEPA: mean cosine of prediction and patch {own.mean():.2f}, "
        f"with the image's other patches {others.mean():.2f}"
    )
