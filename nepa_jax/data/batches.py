"""Makes the rows of a batch from records: reads, decodes, augments, and replaces bad ones."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import numpy as np

from nepa_jax.base.errors import UnavailableError, UserError
from nepa_jax.data.decode import decoded
from nepa_jax.data.draws import example_rng
from nepa_jax.data.records import RecordSet
from nepa_jax.data.settings import LoaderConfig
from nepa_jax.data.transforms import Transform

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

    def __call__(self, task: Task, image: np.ndarray) -> dict[str, Any]:
        """Writes the images into `image`, uint8 [rows, H, W, C].

        Returns all else: label, index and valid [rows], the number `num_bytes` of those read,
        and the list `bad` of BadRecord. Raises UserError or UnavailableError if the files of the
        set cannot be read, MemoryError if there is too little.
        """
        rows = len(task.indices)
        batch = {"image": image, **self._empty(rows)}
        num_parts = min(rows, PARTS_PER_THREAD * self.config.num_threads)
        parts = np.array_split(np.arange(rows), num_parts)
        fills = list(self._pool.map(lambda part: self._fill(batch, task, part), parts))
        image[~batch["valid"]] = 0
        del batch["image"]
        return {
            **batch,
            "bad": [bad for fill in fills for bad in fill.bad],
            "num_bytes": sum(fill.num_bytes for fill in fills),
        }

    def _empty(self, rows: int) -> Batch:
        batch = {"index": np.full(rows, -1, np.int64), "valid": np.zeros(rows, bool)}
        if self.records.labelled:
            batch["label"] = np.full(rows, -1, np.int32)
        return batch

    def _fill(self, batch: Batch, task: Task, rows: Sequence[int]) -> Fill:
        """Fills some rows; tells which bad records should have stood there."""
        fill = Fill()
        for row in rows:
            position = task.first + int(row)
            candidates = self._candidates(position, int(task.indices[row]))
            tries = (self._fill_row(batch, row, position, index, fill) for index in candidates)
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
        self, batch: Batch, row: int, position: int, index: int, fill: Fill
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
            rng = example_rng("augment", self.config.seed, position)
            with decoded(record.image, self.config.channels) as pixels:
                self._transform(pixels, rng, batch["image"][row])
        except (UserError, UnavailableError, MemoryError):
            raise
        except Exception as error:
            return BadRecord(index, name, str(error) or type(error).__name__)
        batch["index"][row] = index
        batch["valid"][row] = True
        if self.records.labelled:
            batch["label"][row] = record.label
        return None

    @cached_property
    def _transform(self) -> Transform:
        config = self.config
        return Transform(
            image_size=config.image_size,
            augment=config.augment,
            crop_scale=config.crop_scale,
            crop_pct=config.crop_pct,
            interpolation=config.interpolation,
            flip=config.flip,
            decode=config.decode,
            policy=config.policy,
            erase_prob=config.erase_prob,
        )

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.config.num_threads, thread_name_prefix="decode")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_pool"}
