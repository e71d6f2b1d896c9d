"""What one batch is made of: its settings, its order, its random numbers and its rows."""

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import takewhile
from typing import Any

import numpy as np
from grain.experimental import index_shuffle

from nepa_jax.data.augment import POLICIES
from nepa_jax.data.decode import MODES, decode_pixels
from nepa_jax.data.resize import INTERPOLATIONS, RESIZES
from nepa_jax.data.sources import RecordSet
from nepa_jax.data.transforms import AUGMENTS, Transform
from nepa_jax.errors import UserError

Batch = dict[str, np.ndarray]

MAX_SUBSTITUTES = 16
SMALL_SET = 1 << 16  # index_shuffle searches a range of this size, for ever longer in smaller sets


@dataclass(frozen=True)
class LoaderConfig:
    """What a batch is made of, and how.

    batch_size counts all hosts. image_size is (height, width). `augment`, `crop_scale`,
    `crop_pct`, `interpolation`, `flip`, `decode`, `policy` and `erase_prob` are those of
    Transform. num_workers is the number of
    processes (0: none but this one), each with num_threads threads; read_ahead is in batches.
    Neither these three nor the number of hosts change a batch. A share of undecodable examples
    above max_bad_rate is an error.
    """

    path: str
    split: str = "train"
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    batch_size: int = 256
    seed: int = 0
    augment: str = "random_crop"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    flip: bool = True
    num_workers: int = 0
    num_threads: int = 8
    read_ahead: int = 2
    max_bad_rate: float = 0.001
    shuffle: bool = True
    decode: str = "exact"
    policy: str = "none"
    erase_prob: float = 0.0


def check_config(config: LoaderConfig, host: int, num_hosts: int) -> None:
    """Raises one UserError that names every wrong value of `config`."""
    if not 0 <= host < num_hosts:
        raise ValueError(f"host {host} of {num_hosts}")
    problems = [
        f"data.{key}={getattr(config, key)!r}: {remedy}"
        for key, (good, remedy) in {**_choices(config), **_ranges(config, num_hosts)}.items()
        if not good
    ]
    if problems:
        raise UserError("; ".join(problems))


Rules = dict[str, tuple[bool, str]]


def _choices(config: LoaderConfig) -> Rules:
    choices = {
        "channels": MODES,
        "augment": AUGMENTS,
        "interpolation": INTERPOLATIONS,
        "decode": RESIZES,
        "policy": POLICIES,
    }
    return {
        key: (getattr(config, key) in known, f"use one of {sorted(known)}")
        for key, known in choices.items()
    }


def _ranges(config: LoaderConfig, num_hosts: int) -> Rules:
    low, high = config.crop_scale
    return {
        "image_size": (min(config.image_size) > 0, "use (height, width) above 0"),
        "batch_size": (
            config.batch_size > 0 and config.batch_size % num_hosts == 0,
            f"use a multiple of the {num_hosts} hosts",
        ),
        "crop_scale": (0 < low <= high <= 1, "use two shares of the area, 0 < low <= high <= 1"),
        "crop_pct": (0 < config.crop_pct <= 1, "use a share above 0, up to 1"),
        "num_workers": (config.num_workers >= 0, "use 0 or more processes"),
        "num_threads": (config.num_threads > 0, "use 1 or more threads"),
        "read_ahead": (config.read_ahead > 0, "use 1 or more batches"),
        "max_bad_rate": (0 <= config.max_bad_rate <= 1, "use a share of the examples, 0 to 1"),
        "erase_prob": (0 <= config.erase_prob <= 1, "use a share of the examples, 0 to 1"),
    }


@dataclass(frozen=True)
class BadRecord:
    """A record that cannot be read or decoded, and why."""

    index: int
    name: str
    reason: str

    def __str__(self) -> str:
        return f"record {self.index} ({self.name or 'name unknown'}: {self.reason})"


@dataclass(frozen=True)
class Order:
    """Which record stands at each global position. A set's epochs follow one another.

    With `repeat=False` there is one epoch, and later positions are padding (-1).
    """

    num_examples: int
    seed: int
    shuffle: bool
    repeat: bool = True

    def __call__(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_examples)
        if epoch and not self.repeat:
            return -1
        if not self.shuffle:
            return offset
        if self.num_examples <= SMALL_SET:
            return int(_permutation(self.num_examples, self.seed, epoch)[offset])
        return _walk(offset, self.num_examples, _epoch_key(self.seed, epoch) % 2**32)


@lru_cache(maxsize=16)
def _epoch_key(seed: int, epoch: int) -> int:
    """Hashed, so that no epoch of one seed is an epoch of another: seed + epoch would be."""
    return _hash("order", seed, epoch)


def _walk(offset: int, num_examples: int, seed: int) -> int:
    """Where a pseudo-random permutation of range(num_examples) sends `offset`."""
    # index_shuffle is no permutation where max_index is a power of 4. An odd max_index is none,
    # and is at most one too large: walking on until inside makes a permutation again.
    last = (num_examples - 1) | 1
    offset = index_shuffle(offset, max_index=last, seed=seed, rounds=4)
    while offset >= num_examples:
        offset = index_shuffle(offset, max_index=last, seed=seed, rounds=4)
    return offset


@lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    keys = np.random.Philox(key=_epoch_key(seed, epoch)).random_raw(num_examples)
    return np.argsort(keys, kind="stable")


@lru_cache(maxsize=16)
def _stream_key(purpose: str, seed: int) -> int:
    return _hash(purpose, seed)


def _hash(*parts: str | int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little")


def example_rng(purpose: str, seed: int, position: int) -> np.random.Generator:
    """The random stream of one example: a function of the purpose, the seed and the position."""
    # The position goes above the 2**64 blocks that one stream can count through.
    counter = np.array([0, position, 0, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=_stream_key(purpose, seed), counter=counter))


@dataclass
class Fill:
    """What was met while some rows were filled: bytes read, and bad records."""

    num_bytes: int = 0
    bad: list[BadRecord] = field(default_factory=list)


@dataclass(frozen=True)
class BatchMaker:
    """Makes the blocks of `rows` consecutive positions that the stream is cut into.

    An example that cannot be decoded is replaced by another one where the order repeats for
    ever; in a single pass its row stays black and not valid.
    """

    config: LoaderConfig
    records: RecordSet
    order: Order
    rows: int

    def __call__(self, block: int) -> dict[str, Any]:
        """Block number `block`: image, label, index, valid [rows], and how it was made: the
        numbers `block`, `num_bytes` (read) and `made_s` (when), and a list `bad`."""
        batch = self._empty()
        chunks = np.array_split(np.arange(self.rows), min(self.rows, 4 * self.config.num_threads))
        fills = list(self._pool.map(lambda rows: self._fill(batch, block, rows), chunks))
        return {
            **batch,
            "bad": [bad for fill in fills for bad in fill.bad],
            "num_bytes": sum(fill.num_bytes for fill in fills),
            "block": block,
            "made_s": time.monotonic(),  # one clock for all processes of a host
        }

    def _empty(self) -> Batch:
        config = self.config
        batch = {
            "image": np.zeros((self.rows, *config.image_size, config.channels), np.uint8),
            "index": np.full(self.rows, -1, np.int64),
            "valid": np.zeros(self.rows, bool),
        }
        if self.records.labelled:
            batch["label"] = np.full(self.rows, -1, np.int32)
        return batch

    def _fill(self, batch: Batch, block: int, rows: Sequence[int]) -> Fill:
        """Fills some rows; tells which bad records should have stood there."""
        fill = Fill()
        for row in rows:
            position = block * self.rows + int(row)
            tries = (
                self._fill_row(batch, row, position, at, fill) for at in self._candidates(position)
            )
            fill.bad.extend(list(takewhile(lambda problem: problem is not None, tries))[:1])
        return fill

    def _candidates(self, position: int) -> Iterator[int]:
        """The record at this position, then its substitutes.

        They are drawn from the whole set: the neighbours of a bad record may be as bad.
        """
        index = self.order(position)
        if index < 0:
            return
        yield index
        if self.order.repeat:
            rng = example_rng("substitute", self.order.seed, position)
            for _ in range(MAX_SUBSTITUTES):
                yield int(rng.random() * len(self.records))

    def _fill_row(
        self, batch: Batch, row: int, position: int, index: int, fill: Fill
    ) -> BadRecord | None:
        """Fills one row from record `index`, or tells what is wrong with it.

        It catches everything, since grain silently drops data when a map raises.
        """
        name = ""
        try:
            record = self.records[index]
            name = record.name
            fill.num_bytes += len(record.image)
            rng = example_rng("augment", self.order.seed, position)
            pixels = decode_pixels(record.image, self.config.channels)
            self._transform(pixels, rng, batch["image"][row])
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
