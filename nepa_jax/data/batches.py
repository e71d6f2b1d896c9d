"""Makes the rows of a batch from records: reads, decodes, augments, and replaces bad ones."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.data.decode import decoded
from nepa_jax.data.draws import example_rng
from nepa_jax.data.masks import IGNORED
from nepa_jax.data.records import RecordSet
from nepa_jax.data.settings import LoaderConfig
from nepa_jax.data.transforms import of_masks, transform

# image uint8 [rows, H, W, C]; label int32 [rows] if it is labelled; mask uint8 [rows, H, W] if asked
Batch = dict[str, np.ndarray]

MAX_SUBSTITUTES = 16
PARTS_PER_THREAD = 16  # of the rows; the more, the less the others wait for the last thread


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be read or decoded, and why."""

    index: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"record {self.index} ({self.name or 'name unknown'}: {self.reason})"


@dataclass(frozen=True)
class Task:
    """The rows to be made for the global positions from `first` on.

    indices: int64 [rows], the record that stands at each position; -1 for padding.
    """

    first: int
    indices: np.ndarray


@dataclass
class Fill:
    """What was met while some rows were filled: bytes read, and bad records."""

    num_bytes: int = 0
    bad: list[BadRecord] = field(default_factory=list)


class Account(NamedTuple):
    """How rows were made: the first one's global position, and what was met.

    index: int64 [rows], the record that each one shows; -1 if none.
    """

    first: int
    index: np.ndarray
    met: Fill

    @property
    def valid(self) -> np.ndarray:
        """bool [rows]."""
        return self.index >= 0


class Made(NamedTuple):
    """Rows of a batch, and what is told of them."""

    batch: Batch
    account: Account


@dataclass(frozen=True)
class BatchMaker:
    """Makes the rows of a task.

    With `substitute` an example that cannot be decoded is replaced by another one of the set;
    else its row stays black and not valid. Pickles without its threads and open files.
    """

    config: LoaderConfig
    records: RecordSet
    substitute: bool

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (*self.config.image_size, self.config.channels)

    def __call__(self, task: Task, image: np.ndarray) -> Made:
        """Writes the images into `image`, uint8 [rows, H, W, C], which is the batch's.

        Raises UserError or UnavailableError if the files of the set cannot be read, MemoryError if
        there is too little.
        """
        rows, met = len(task.indices), Fill()
        made = Made({"image": image}, Account(task.first, np.full(rows, -1, np.int64), met))
        if self.records.labelled:
            made.batch["label"] = np.full(rows, -1, np.int32)
        if self.config.masks:
            made.batch["mask"] = np.empty(image.shape[:3], np.uint8)
        num_parts = min(rows, PARTS_PER_THREAD * self.config.threads)
        parts = np.array_split(np.arange(rows), num_parts)
        for fill in self._pool.map(lambda part: self._fill(made, task, part), parts):
            met.num_bytes += fill.num_bytes
            met.bad += fill.bad
        image[~made.account.valid] = 0
        if self.config.masks:
            made.batch["mask"][~made.account.valid] = IGNORED
        return made

    def _fill(self, made: Made, task: Task, rows: Sequence[int]) -> Fill:
        """Fills some rows; tells which bad records should have stood there."""
        fill = Fill()
        for row in rows:
            position = task.first + int(row)
            candidates = self._candidates(position, int(task.indices[row]))
            tries = (self._fill_row(made, row, position, index, fill) for index in candidates)
            fill.bad.extend(list(takewhile(lambda problem: problem is not None, tries))[:1])
        return fill

    def _candidates(self, position: int, index: int) -> Iterator[int]:
        """The record at this position, then its substitutes.

        They are drawn from the whole set: the neighbours of a bad record may be as bad.
        """
        if index < 0:
            return
        yield index
        if self.substitute:
            rng = example_rng("substitute", self.config.seed, position)
            for _ in range(MAX_SUBSTITUTES):
                yield int(rng.random() * len(self.records))

    def _fill_row(
        self, made: Made, row: int, position: int, index: int, fill: Fill
    ) -> BadRecord | None:
        """Fills one row from record `index`, or tells what is wrong with it.

        It catches everything about the image, which must not end a run. What the system cannot
        do, such as to read any file of the set, is no fault of the image.
        """
        name = ""
        try:
            record = self.records[index]
            name = record.name
            fill.num_bytes += len(record.image)
            draws = partial(example_rng, "augment", self.config.seed, position)
            with decoded(record.image, self.config.channels) as pixels:
                window = 0
                if self.config.masks:  # the same draws twice move it as its image
                    mask, out = self.records.mask(record, pixels.shape[:2]), made.batch["mask"][row]
                    window = transform(
                        of_masks(self.config), mask[..., None], draws(), out[..., None]
                    )
                transform(self.config, pixels, draws(), made.batch["image"][row], window)
        except (UserError, UnavailableError, MemoryError):
            raise
        except Exception as error:
            return BadRecord(index, name, str(error) or type(error).__name__)
        made.account.index[row] = index
        if self.records.labelled:
            made.batch["label"][row] = record.label
        return None

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.config.threads, thread_name_prefix="decode")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_pool"}
