"""The images that are shown: of a prepared set or of files, cut for a model."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.data.decode import DecodeError, decoded
from nepa_jax.data.images import cut
from nepa_jax.data.prepare.listing import Example
from nepa_jax.data.records import RecordError, RecordSet
from nepa_jax.data.settings import LoaderConfig
from nepa_jax.evals.embed import opened

MAX_PATCHES = 4096  # of an image that is shown whole


class Shown(NamedTuple):
    """One image as the model sees it."""

    name: str
    pixels: np.ndarray  # uint8 [H, W, C], sides in whole patches
    label: str = ""  # of its class, where that is known
    record: int | None = None  # its number in the data set


@dataclass(frozen=True)
class Cut:
    """How images are cut: as in evaluation, or whole, with an aspect of their own."""

    data: LoaderConfig
    patch_size: int
    whole: bool = False

    def pixels(self, encoded: bytes, name: str) -> np.ndarray:
        """uint8 [H, W, C]. Raises DecodeError; UserError if it has too many patches."""
        with decoded(encoded, self.data.channels) as pixels:
            if not self.whole:
                return cut(pixels, self.data)
            return cut(
                pixels, replace(self.data, crop="whole", image_size=self._sides(pixels, name))
            )

    def _sides(self, pixels: np.ndarray, name: str) -> tuple[int, int]:
        """Height and width in whole patches, the shorter one as in evaluation."""
        found, wanted = pixels.shape[:2], min(self.data.image_size) / self.patch_size
        height, width = (max(1, round(wanted * side / min(found))) for side in found)
        if height * width > MAX_PATCHES:
            raise UserError(
                f"image {name}: {found[0]} x {found[1]} px, whole, has {height * width:,} patches, of "
                f"{MAX_PATCHES:,} that are shown; leave out --whole, or give a smaller --image-size"
            )
        return height * self.patch_size, width * self.patch_size


def of_files(sources: Sequence[str], split: str, how: Cut, count: int) -> list[Shown]:
    """The first so many images of files, or of one folder, archive or prepared set.

    Those that cannot be decoded are named, and left out.

    Raises:
        UserError: there are no such files, or none of them can be decoded.
    """
    with opened(sources, split) as listing:
        for line in listing.left_out.lines():
            warn(f"left out: {line}")
        classes = listing.classes if listing.labelled else ()
        tries = ((each.name, partial(_of_example, each, classes, how)) for each in listing.examples)
        return _first(tries, count, ", ".join(sources[:3]))


def of_records(records: RecordSet, how: Cut, count: int) -> list[Shown]:
    """The first so many images of a split. Raises as :func:`of_files`."""
    tries = ((f"of record {n}", partial(of_record, records, n, how)) for n in range(len(records)))
    return _first(tries, count, f"{records.path}, split {records.split}")


def of_record(records: RecordSet, number: int, how: Cut) -> Shown:
    """One image of a split. Raises DecodeError or RecordError if there is none."""
    record = records[number]
    label = "" if record.label is None else records.classes[record.label]
    return Shown(record.name, how.pixels(record.image, record.name), label, number)


def _of_example(example: Example, classes: Sequence[str], how: Cut) -> Shown:
    label = classes[example.label] if classes and example.label is not None else ""
    return Shown(example.name, how.pixels(example.read(), example.name), label)


def _first(
    tries: Iterable[tuple[str, Callable[[], Shown]]], count: int, source: str
) -> list[Shown]:
    found = list(islice(_decodable(tries), count))
    if not found:
        raise UserError(f"{source}: no image there can be decoded; give others")
    return found


def _decodable(tries: Iterable[tuple[str, Callable[[], Shown]]]) -> Iterator[Shown]:
    for name, read in tries:
        try:
            yield read()
        except (DecodeError, RecordError, OSError) as error:
            warn(f"left out: image {name}: cannot be decoded ({error})")


def short(name: str, letters: int = 16) -> str:
    """A file's name without folder and suffix, cut in the middle to so many letters."""
    stem = Path(name).stem
    half = (letters - 1) // 2
    return stem if len(stem) <= letters else f"{stem[:half]}…{stem[-half:]}"
