"""How well NEPA foresees each patch, and what each of its predictions resembles.

The maps of cosine over the image are those of the paper (arXiv 2512.16922), which shows them for
natural images.
"""

from collections.abc import Sequence

import jax
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from nepa_jax.objectives import nepa
from nepa_jax.objectives.pictured import of_most_contrast
from nepa_jax.visualize import sheet, style

NUM_QUERIES = 3
prediction_similarity = jax.jit(nepa.prediction_similarity)
COSINE = ScalarMappable(Normalize(-1, 1), "RdBu_r")


def draw(
    model: nepa.NEPA,
    images: Sequence[np.ndarray],
    patch: int | None = None,
    names: Sequence[str] = (),
) -> Figure:
    """Draws, for each image, the cosine at every patch and what some predictions resemble.

    Args:
        images: uint8 [H, W, C], of one shape or several; one row each, four to six read well.
        patch: whose prediction is compared, in raster order; None: three with most on them.
        names: of the images.
    """
    maps = [np.asarray(prediction_similarity(model, image[None])[0]) for image in images]
    size, rows, frames = model.vit.config.patch_size, [], []
    for row, (image, cosines) in enumerate(zip(images, maps, strict=True)):
        grid = model.vit.grid(image[None])
        queries = [patch] if patch is not None else choose_queries(image, size)
        shown = [np.diagonal(cosines), *cosines[np.array(queries)]]
        cells = [style.coloured(each.reshape(grid), COSINE, size) for each in shown]
        rows.append([style.rgb(image), *cells])
        places = [divmod(int(query), grid[1]) for query in queries]
        frames += [
            sheet.Frame(row, column, place, size)
            for n, place in enumerate(places)
            for column in (0, 2 + n)
        ]
    headings = ["image", "each prediction\nand its patch"]
    headings += ["prediction of the framed\npatch, and every patch"] * (len(rows[0]) - 2)
    labels = names or [""] * len(images)
    drawn = sheet.Sheet(rows, labels, headings, frames=frames, side=1.6)
    made, axes = sheet.draw(drawn, _summary(maps))
    made.colorbar(COSINE, ax=axes, shrink=0.6, label="cosine")
    return made


def choose_queries(image: np.ndarray, patch_size: int) -> np.ndarray:
    """The patches of most contrast, in raster order: int [3]. Flat ones would show nothing."""
    return np.asarray(of_most_contrast(image[None], patch_size, NUM_QUERIES))[0]


def _summary(maps: Sequence[np.ndarray]) -> str:
    own = np.mean([np.nanmean(np.diagonal(each)) for each in maps])
    apart = [np.where(np.eye(len(each), dtype=bool), np.nan, each) for each in maps]
    others = np.mean([np.nanmean(each) if len(each) > 1 else np.nan for each in apart])
    return (
        f"NEPA: mean cosine of a prediction, made from the patches before, with its patch {own:.2f}, "
        f"with the image's other patches {others:.2f}"
    )
