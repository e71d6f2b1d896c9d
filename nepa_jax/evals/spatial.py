"""How far patch tokens are organised in space: LDS, CDS, SRSS and RMSC (iREPA, arXiv 2512.10794, section 3).

Over 27 encoders these go with the quality of the images that a generator aligned to them makes, where
linear accuracy does not. Similarity is the cosine of two tokens of one image, distance the Manhattan
distance on the grid of patches:

* LDS: mean similarity of neighbours minus that of tokens far away;
* CDS: how fast similarity falls with distance, minus its least-squares slope, each distance counted once;
* SRSS: of a token of an object, similarity to the object nearby minus that to the background far away;
* RMSC: root mean square distance of the unit tokens from their mean.
"""

import zipfile
from dataclasses import asdict, dataclass

import jax
import jax.numpy as jnp
import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import meter
from nepa_jax.evals import results
from nepa_jax.evals.features import encoded
from nepa_jax.evals.subject import Subject


@dataclass(frozen=True)
class Distances:
    """Between which patches similarities are taken, in patches; both ends belong to a range."""

    near: tuple[int, int] = (1, 1)  # LDS: neighbours
    far: int = 6  # LDS: from here on
    slope: int = 8  # CDS: up to here
    object_near: tuple[int, int] = (1, 1)  # SRSS
    background_far: int = 6  # SRSS: from here on


def _paper(grid: tuple[int, int]) -> Distances:
    """The paper's text: near is less than half of the grid's height, far is the rest."""
    half = grid[0] // 2
    return Distances(near=(1, half - 1), far=half)


# The released code (End2End-Diffusion/iREPA at 99ad4ac), and the text.
PRESETS = {"release": lambda grid: Distances(), "paper": _paper}
METRICS = ("lds", "cds", "srss", "rmsc")
MIN_OBJECT, MIN_BACKGROUND = 2, 1  # tokens; images with fewer have no SRSS


def evaluate(
    subject: Subject, preset: str = "release", masks: str | None = None
) -> results.Outcome:
    """The metrics of the test split's patch tokens, at every layer; needs no labels.

    Of causal encoders there are ``shifted`` rows too: an output that predicts the next patch resembles
    that one, so that such maps are read one place later, with the class token's output at the first
    patch and without the last one's.

    Args:
        subject: the encoder, and its images.
        preset: of ``PRESETS``.
        masks: a file ``.npz`` with ``masks`` [images, rows, columns], not 0 where the object is, in
            the order of the set's records.

    Raises:
        UserError: the file holds no such masks of these images, or the grid is too small.
    """
    count, patch = len(subject.test_records), subject.loaded.config.model.patch_size
    grid = tuple(side // patch for side in subject.data.image_size)
    objects = None if masks is None else read_masks(masks, count, grid)
    weights, distances = weights_of(grid, preset), PRESETS[preset](grid)
    pools = ("none", "cls") if subject.attention == "causal" else ("none",)
    found: dict[str, list[np.ndarray]] = {}
    with meter(count, f"spatial metrics of {subject.test_split}") as advance:
        for rows in encoded(subject.loaded, subject.test_data, pools, subject.layers):
            mask = None if objects is None else objects[rows.index]
            for view, tokens in views(**rows.pooled).items():
                of_layers = [metrics(layer, mask, weights) for layer in tokens]
                found.setdefault(view, []).append(np.stack(of_layers))
            advance(len(rows.index))
    table = [
        {"layer": layer, "pool": "none", "tokens": view} | row
        for view, parts in found.items()
        for layer, row in zip(subject.layers, means(np.concatenate(parts, axis=2)), strict=True)
    ]
    images = sum(part.shape[2] for part in found["in place"])
    protocol = {
        "preset": preset, "distances": asdict(distances), "grid": grid, "test_images": images,
        "masks": masks or "none, so no SRSS", "number": "mean over images",
    }  # fmt: skip
    plain = [row for row in table if row["tokens"] == "in place"]
    return results.outcome(protocol, table, plain, metric="lds")


def views(none: np.ndarray, cls: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Tokens [layers, b, N, D] as they are, and shifted by one place, which needs the class token's."""
    if cls is None:
        return {"in place": none}
    shifted = np.concatenate([cls[:, :, None], none[:, :, :-1]], axis=2)
    return {"in place": none, "shifted": shifted}


def means(values: np.ndarray) -> list[dict[str, float]]:
    """Of the metrics of images, [layers, metrics, images], the mean of each; NaN is no image's."""
    counts = np.isfinite(values).sum(axis=2)
    sums = np.nansum(values, axis=2)
    return [
        {
            name: float(total / n)
            for name, total, n in zip(METRICS, of_layer, number, strict=True)
            if n
        }
        for of_layer, number in zip(sums, counts, strict=True)
    ]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """Of pairs of patches, float32 [N, N]: what each counts in a metric."""

    lds: np.ndarray  # LDS is the sum over pairs of similarity times this
    cds: np.ndarray  # so is CDS
    object_near: np.ndarray  # 1 for pairs that SRSS takes inside of the object
    background_far: np.ndarray  # 1 for pairs that it takes from object to background


def weights_of(grid: tuple[int, int], preset: str = "release") -> Weights:
    """Raises UserError if the grid has no two distances, or none that the preset calls near."""
    return weights_at(grid, PRESETS[preset](grid))


def weights_at(grid: tuple[int, int], distances: Distances) -> Weights:
    """See :func:`weights_of`."""
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    apart = abs(rows[:, None] - rows) + abs(columns[:, None] - columns)
    near = _between(apart, *distances.near)
    counted = [d for d in range(1, distances.slope + 1) if (apart == d).any()]
    if not near.any() or len(counted) < 2:
        raise UserError(
            f"{grid[0]} x {grid[1]} patches are too few for spatial metrics: give larger images "
            "(--image-size), or --preset=release"
        )
    deviation = np.array(counted) - np.mean(counted)
    slopes = zip(counted, deviation / np.sum(deviation**2), strict=True)
    return Weights(
        _mean(near) - _mean(apart >= distances.far),
        -sum(slope * _mean(apart == d) for d, slope in slopes),
        _between(apart, *distances.object_near).astype(np.float32),
        (apart >= distances.background_far).astype(np.float32),
    )


def _between(apart: np.ndarray, low: int, high: int) -> np.ndarray:
    return (apart >= low) & (apart <= high)


def _mean(pairs: np.ndarray) -> np.ndarray:
    """What each pair counts in their mean; 0 where there is none, as released."""
    return pairs.astype(np.float32) / max(1, pairs.sum())


@jax.jit
def metrics(tokens: jax.Array, objects: jax.Array | None, weights: Weights) -> jax.Array:
    """LDS, CDS, SRSS (NaN without objects) and RMSC of images, float32 [4, b].

    Args:
        tokens: float32 [b, N, D].
        objects: bool [b, N], or None.
        weights: of the grid.
    """
    unit = _unit(tokens, 1e-8)  # clamps as released
    similarity = jnp.einsum("bnd,bmd->bnm", unit, unit)
    lds, cds = ((similarity * pairs).sum((1, 2)) for pairs in (weights.lds, weights.cds))
    spread = jnp.square(unit - unit.mean(1, keepdims=True)).sum(2).mean(1)
    return jnp.stack([lds, cds, _srss(tokens, objects, weights), jnp.sqrt(spread)])


def _srss(tokens: jax.Array, objects: jax.Array | None, weights: Weights) -> jax.Array:
    if objects is None:
        return jnp.full(len(tokens), jnp.nan)
    unit = _unit(tokens, 1e-12)
    similarity = jnp.einsum("bnd,bmd->bnm", unit, unit)
    inside = objects[:, None, :] * weights.object_near
    outside = ~objects[:, None, :] * weights.background_far
    counts = inside.sum(2), outside.sum(2)  # [b, anchors]
    sums = (similarity * inside).sum(2), (similarity * outside).sum(2)
    near, far = (total / jnp.maximum(count, 1) for total, count in zip(sums, counts, strict=True))
    anchors = objects & (counts[0] > 0) & (counts[1] > 0)
    number = anchors.sum(1)
    mean = jnp.where(anchors, near - far, 0).sum(1) / jnp.maximum(number, 1)
    size = objects.sum(1)
    enough = (size >= MIN_OBJECT) & (objects.shape[1] - size >= MIN_BACKGROUND) & (number > 0)
    return jnp.where(enough, mean, jnp.nan)


def _unit(tokens: jax.Array, least: float) -> jax.Array:
    return tokens / jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), least)


def read_masks(file: str, count: int, grid: tuple[int, int]) -> np.ndarray:
    """Masks of the grid, bool [count, N]; larger ones count a patch that has any of the object.

    Raises:
        UserError: see :func:`evaluate`.
    """
    wanted = "give an .npz of numbers with an array `masks`"
    try:
        with zipfile.ZipFile(file):  # what else NumPy opens is a pickle or a single array
            masks = np.load(file)["masks"]
    except OSError as error:
        raise UserError(f"--masks={file}: cannot be read ({error.strerror}); {wanted}") from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        raise UserError(f"--masks={file}: is no such file; {wanted}") from None
    if masks.ndim != 3 or len(masks) != count or any(np.mod(masks.shape[1:], grid)):
        raise UserError(
            f"--masks={file}: masks is {list(masks.shape)}; give [{count}, {grid[0]}, {grid[1]}], one "
            "for each image in the set's order, or multiples of these sides"
        )
    rows, columns = (a // b for a, b in zip(masks.shape[1:], grid, strict=True))
    tiles = (masks != 0).reshape(count, grid[0], rows, grid[1], columns)
    return tiles.any(axis=(2, 4)).reshape(count, -1)
