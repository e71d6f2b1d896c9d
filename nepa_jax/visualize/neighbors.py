"""The images of a set that an encoder holds for the most alike."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from nepa_jax.visualize import sheet, style
from nepa_jax.visualize.images import Shown, short

NUM_NEIGHBORS = 7


class Nearest(NamedTuple):
    """Of Q queries the k most similar vectors, the nearest first."""

    rows: np.ndarray  # int [Q, k]
    cosines: np.ndarray  # float [Q, k]


def nearest(
    queries: np.ndarray, bank: np.ndarray, own: Sequence[int | None], k: int = NUM_NEIGHBORS
) -> Nearest:
    """Finds neighbours by cosine; ties go to the earlier row.

    Args:
        queries: float [Q, D].
        bank: float [M, D], with M > k.
        own: the row of the bank that a query is itself, which is none of its neighbours; None: none.
        k: so many.
    """
    cosines = _unit(queries) @ _unit(bank).T
    for row, number in enumerate(own):
        if number is not None:
            cosines[row, number] = -np.inf
    rows = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return Nearest(rows, np.take_along_axis(cosines, rows, axis=1))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def draw(
    queries: Sequence[Shown], found: Sequence[Sequence[Shown]], cosines: np.ndarray, heading: str
) -> Figure:
    """Draws a row for each query: itself, and its neighbours with their cosine and class."""
    rows = [
        [style.rgb(each.pixels) for each in (query, *others)]
        for query, others in zip(queries, found, strict=True)
    ]
    captions = [
        [
            _lines("", query),
            *(_lines(f"{value:.3f}", each) for each, value in zip(others, values, strict=True)),
        ]
        for query, others, values in zip(queries, found, cosines, strict=True)
    ]
    headings = ["image", *(f"nearest {n + 1}" for n in range(len(rows[0]) - 1))]
    labels = [short(query.name) for query in queries]
    return sheet.draw(sheet.Sheet(rows, labels, headings, captions), heading)[0]


def _lines(text: str, image: Shown) -> str:
    return "\n".join(part for part in (text, short(image.label)) if part)
