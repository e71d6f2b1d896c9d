"""Features of any images, written to a file."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import progress, warn
from nepa_jax.base.threads import ordered_map
from nepa_jax.config import evaluation_data
from nepa_jax.data.decode import DecodeError
from nepa_jax.data.images import cut_out
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.listing import IMAGE_SUFFIXES, Example, Listing
from nepa_jax.data.prepare.opening import open_listing
from nepa_jax.data.settings import LoaderConfig
from nepa_jax.evals.features import extract
from nepa_jax.loading import Loaded

BATCH = 64  # images
THREADS = os.cpu_count() or 1


class Embedded(NamedTuple):
    """What was written: of N images, in the order of the source."""

    names: list[str]
    features: np.ndarray  # float32 [N, D], or [N, patches, D] without pooling
    labels: np.ndarray | None  # int32 [N]
    classes: tuple[str, ...]


def embed(
    images: Sequence[str], loaded: Loaded, out: str, layer: int, pool: str, split: str
) -> Embedded:
    """Writes ``names``, ``features`` and, where they are known, ``labels`` and ``classes`` to ``out``.

    Images are cut as in evaluation. Those that cannot be decoded are left out, counted and named.

    Args:
        images: files; or one folder, archive or prepared set.
        loaded: the encoder.
        out: a file ``.npz``; it appears whole or not at all.
        layer: 0 is the embedding, -1 the last (normed).
        pool: see :func:`nepa_jax.evals.features.extract`.
        split: of a source that has several.

    Raises:
        UserError: there are no such images, layer or pooling, or ``out`` cannot be written.
    """
    place = _writable(out)
    with opened(images, split) as listing:
        read, left_out = [], listing.left_out
        pixels = _pixels(listing.examples, evaluation_data(loaded.config), read, left_out)
        batches = map(np.stack, _in_groups(pixels))
        features = extract(loaded.objective, loaded.model, batches, pool, layer)[0]
    for line in left_out.lines():
        warn(f"left out: {line}")
    labels = np.array([example.label for example in read], np.int32) if listing.labelled else None
    found = Embedded([example.name for example in read], features, labels, listing.classes)
    _write(found, place)
    return found


def _writable(out: str) -> Path:
    """Raises UserError before any work is done that could not be kept."""
    place = Path(out)
    if place.suffix != ".npz" or "://" in out:
        raise UserError(f"--out={out}: give a file on this machine whose name ends in .npz")
    if place.is_dir() or not os.access(place.parent, os.W_OK):
        raise UserError(f"--out={out}: cannot be written; give a file in a folder that is there")
    return place


@contextmanager
def opened(images: Sequence[str], split: str) -> Iterator[Listing]:
    """The examples of a source, or of files given one by one.

    Raises:
        UserError: there are no such images.
    """
    files = [Path(name) for name in images]
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise UserError(f"{missing[0]} does not exist ({len(missing)} of {len(files)} are missing)")
    if len(files) == 1 and files[0].suffix.lower() not in IMAGE_SUFFIXES:
        with (
            tempfile.TemporaryDirectory(prefix="nepa-jax-embed-") as unfinished,
            open_listing(files[0], split, Path(unfinished), THREADS) as listing,
        ):
            yield listing
        return
    folders = [str(file) for file in files if not file.is_file()]
    if folders:
        raise UserError(f"{folders[0]} is no file; give either files, or one folder or archive")
    yield Listing(
        [Example(str(file), None, file.stat().st_size, file.read_bytes) for file in files], ()
    )


def _pixels(
    examples: Sequence[Example], data: LoaderConfig, read: list[Example], left_out: LeftOut
) -> Iterator[np.ndarray]:
    """The images that can be decoded, uint8 [H, W, C]; ``read`` gets their examples, in order."""
    found = ordered_map(partial(_decoded, data=data), examples, THREADS)
    for example, pixels in zip(examples, progress(found, len(examples), "embed"), strict=True):
        if isinstance(pixels, str):
            left_out.add(pixels, example.name)
        else:
            read.append(example)
            yield pixels


def _decoded(example: Example, data: LoaderConfig) -> np.ndarray | str:
    """uint8 [H, W, C], or why there is none."""
    try:
        return cut_out(example.read(), data)
    except (DecodeError, OSError) as error:
        return f"images that cannot be read ({error})"


def _in_groups(pixels: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    group: list[np.ndarray] = []
    for image in pixels:
        group.append(image)
        if len(group) == BATCH:
            yield group
            group = []
    if group:
        yield group


def _write(found: Embedded, place: Path) -> None:
    arrays = {"names": np.array(found.names), "features": found.features}
    if found.labels is not None:
        arrays |= {"labels": found.labels, "classes": np.array(found.classes)}
    unfinished = place.with_name(f".{place.name}.tmp")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
        unfinished.replace(place)
    except OSError as error:
        raise UserError(f"--out={place}: cannot be written ({error.strerror})") from error
    finally:
        unfinished.unlink(missing_ok=True)
