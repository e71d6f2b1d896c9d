"""What patches have in common: their three main directions in every layer, as colours.

As in Oquab et al. 2023 (DINOv2, arXiv 2304.07193, figure 1). The first component is shown as lightness,
the second from blue to yellow, the third from green to red, so that a reader who tells no red from
green loses the least of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from skimage.color import lab2rgb
from sklearn.decomposition import PCA

from nepa_jax.loading import Loaded
from nepa_jax.objectives.base import encode
from nepa_jax.visualize import sheet, style

SHARES = (1, 99)  # per cent of the patches, at which the colours end
# Of each component in CIELAB: lightness, blue to yellow (b), green to red (a). Lighter or more
# saturated ones are outside of what screens show.
LOW, HIGH = np.array([30.0, -45.0, -45.0]), np.array([92.0, 45.0, 45.0])
ACROSS = 14  # cells in a row, at most


def draw(
    loaded: Loaded, images: Sequence[np.ndarray], layers: Sequence[int], names: Sequence[str] = ()
) -> Figure:
    """Draws, for each image, a map of colours at each layer; one PCA a layer, of all images.

    Args:
        loaded: any encoder.
        images: uint8 [H, W, C], of one shape or several, with two patches or more in all.
        layers: 0 is the embedding.
        names: of the images.
    """
    size = loaded.config.model.patch_size
    features = [encode(loaded.objective, loaded.model, image[None], None) for image in images]
    patches = [np.asarray(each.patches)[np.array(layers), 0] for each in features]
    ends = np.cumsum([each.shape[1] for each in patches])[:-1]
    colors = np.split(layer_colors(np.concatenate(patches, axis=1)), ends, axis=1)
    rows, labels = [], []
    for number, image in enumerate(images):
        grid = tuple(map(int, features[number].grid))
        maps = [each.reshape(*grid, 3) for each in colors[number]]
        rows += _cut([style.rgb(image), *(style.enlarged(each, size) for each in maps)])
        labels += [names[number] if names else ""] + [""] * (len(rows) - len(labels) - 1)
    captions = _cut(["image", *(f"layer {layer}" for layer in layers)]) * len(images)
    inches = max(0.7, min(1.6, 9 / len(rows[0])))
    return sheet.draw(
        sheet.Sheet(rows, labels, captions=captions, side=inches),
        "Three main components of the patches at each layer, fitted to all images together: lightness, "
        "blue to yellow, green to red",
    )[0]


def _cut(cells: list[Any]) -> list[list[Any]]:
    """Rows that a page has room for."""
    return [cells[at : at + ACROSS] for at in range(0, len(cells), ACROSS)]


def layer_colors(patches: np.ndarray) -> np.ndarray:
    """Colours of all images' patches: float [layers, N, D] -> uint8 [layers, N, 3]."""
    values: list[np.ndarray] = []
    for each in patches:
        values.append(values_of(each, values[-1] if values else None))
    return np.stack([colors_of(each) for each in values])


def values_of(patches: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """Patches along their three main components, of fixed signs: float [N, D] -> float64 [N, 3].

    Zero along a component that there is not.

    Args:
        patches: of all images, at one layer.
        before: the values of the layer before, which these are to resemble; None: the largest weight
            of a component is positive (scikit-learn's rule).
    """
    values = np.zeros((len(patches), 3))
    if patches.std(axis=0).any():
        count = min(3, *patches.shape)
        fitted = PCA(count, svd_solver="covariance_eigh").fit_transform(patches.astype(np.float64))
        values[:, :count] = fitted
    if before is None:
        return values
    return np.where((values * before).sum(axis=0) < 0, -values, values)


def colors_of(values: np.ndarray) -> np.ndarray:
    """Colours of patches: float [N, 3] -> uint8 [N, 3].

    From the first to the 99th hundredth of a component's values; what does not vary is in the middle.
    """
    low, high = np.percentile(values, SHARES, axis=0)
    width = high - low
    flat = width <= 1e-6 * width.max(initial=1e-30)
    shares = np.where(flat, 0.5, np.clip((values - low) / np.where(flat, 1.0, width), 0, 1))
    lab = (LOW + (HIGH - LOW) * shares)[:, [0, 2, 1]]
    return np.round(255 * lab2rgb(lab[None])[0]).astype(np.uint8)
