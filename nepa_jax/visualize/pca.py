"""What patches have in common: their three main directions in every layer, as colours.

As in Oquab et al. 2023 (DINOv2, arXiv 2304.07193, figure 1). The first component is shown as lightness,
the second from blue to yellow, the third from green to red, so that a reader who tells no red from
green loses the least of them.
"""

from collections.abc import Sequence

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
    features = [encode(loaded.objective, loaded.model, image[None], None) for image in images]
    found = [(np.asarray(each.patches)[:, 0], tuple(map(int, each.grid))) for each in features]
    size = loaded.config.model.patch_size
    by_layer = [colors_of([patches[layer] for patches, _ in found]) for layer in layers]
    rows, labels = [], []
    for index, image in enumerate(images):
        grid = found[index][1]
        maps = [style.enlarged(each[index].reshape(*grid, 3), size) for each in by_layer]
        cells = [style.rgb(image), *maps]
        parts = [cells[at : at + ACROSS] for at in range(0, len(cells), ACROSS)]
        rows += parts
        labels += [names[index] if names else "", *[""] * (len(parts) - 1)]
    captions = ["image", *(f"layer {layer}" for layer in layers)]
    texts = [captions[at : at + ACROSS] for at in range(0, len(captions), ACROSS)] * len(images)
    drawn = sheet.Sheet(rows, labels, captions=texts, side=max(0.7, min(1.6, 9 / len(rows[0]))))
    return sheet.draw(
        drawn,
        "Three main components of the patches at each layer, fitted to all images together: lightness, "
        "blue to yellow, green to red",
    )[0]


def colors_of(patches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Colours of patches by their three main components: float [N, D] each -> uint8 [N, 3] each.

    Sign and scale are fixed: the largest weight of a component is positive (scikit-learn's rule), and
    colours run from the first to the 99th hundredth of its values. A component that there is not, or
    along which nothing varies, is in the middle.
    """
    joined = np.concatenate(patches).astype(np.float64)
    count = min(3, *joined.shape)
    values = np.zeros((len(joined), 3))
    if joined.std(axis=0).any():
        values[:, :count] = PCA(count, svd_solver="covariance_eigh").fit_transform(joined)
    low, high = np.percentile(values, SHARES, axis=0)
    width = high - low
    flat = width <= 1e-6 * width.max(initial=1e-30)
    shares = np.where(flat, 0.5, np.clip((values - low) / np.where(flat, 1.0, width), 0, 1))
    lab = (LOW + (HIGH - LOW) * shares)[:, [0, 2, 1]]
    colors = np.round(255 * lab2rgb(lab[None])[0]).astype(np.uint8)
    return np.split(colors, np.cumsum([len(each) for each in patches])[:-1])
