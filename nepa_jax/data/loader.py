"""Batches as a function of the step: any host, worker or restart sees the same ones."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.data.batches import MAX_SUBSTITUTES, Account, BadRecord, Batch, BatchMaker, Made, Task
from nepa_jax.data.decode import DecodeError, identify
from nepa_jax.data.order import Order
from nepa_jax.data.records import RecordError, RecordSet, open_dataset
from nepa_jax.data.settings import LoaderConfig, memory_problems, problems
from nepa_jax.data.stream import END, Blocks, Stream
from nepa_jax.data.transforms import RANDOM_CROPS

__all__ = ["Batch", "Loader", "LoaderConfig", "iter_epoch"]

MIN_BAD_RECORDS = 10  # fewer are never an error, whatever the rate


class BadCount:
    """Counts and tells the bad records among the examples seen, and stops when they are too many."""

    def __init__(self, config: LoaderConfig) -> None:
        self.config = config
        self.seen = 0
        self.total = 0
        self.samples: list[BadRecord] = []
        self._next_told = 1

    def add(self, account: Account) -> None:
        """Raises UserError above max_bad_rate (and MIN_BAD_RECORDS) of the examples so far."""
        self.seen += len(account.index)
        self.total += len(account.met.bad)
        self.samples = [*self.samples, *account.met.bad][:3]
        if self.total > max(MIN_BAD_RECORDS, self.config.max_bad_rate * self.seen):
            raise UserError(
                f"{self}, more than data.max_bad_rate = {self.config.max_bad_rate} allows: "
                f"run `nepa-jax data verify {self.config.path}`"
            )
        if self.total >= self._next_told:  # the first, the tenth, the hundredth, ...
            self._next_told = 10 ** len(str(self.total))
            warn(f"{self}; `nepa-jax data verify {self.config.path}` lists all")

    def __str__(self) -> str:
        samples = "; ".join(map(str, self.samples))
        return f"{self.total} of {self.seen} examples could not be decoded, such as {samples}"


class Loader:
    """This host's rows of every batch of a run, with nothing but the step as state.

    The order of the examples is permutation(seed, epoch), one epoch after another; step k has
    the global positions [k B, (k + 1) B), of which host h of n has the h-th n-th part. Every
    random choice for an example depends on (seed, global position) only.

    Raises UserError at construction if a setting is wrong, if the data set is missing or
    damaged, or is smaller than one batch.
    """

    def __init__(
        self, config: LoaderConfig, host: int = 0, num_hosts: int = 1, first: int | None = None
    ) -> None:
        """With ``first`` the first so many records are the whole set."""
        _check(config, host, num_hosts)
        self.config = config
        self.records = _opened(config)
        self._count = min(len(self.records), first or len(self.records))
        self._check_size()
        self._part = (host, num_hosts)
        order = Order(self.num_examples, config.seed, shuffle=True)
        self._blocks = Blocks(order, config.batch_size // num_hosts)
        self._bad = BadCount(config)
        self._num_bytes, self._num_ready = 0, 0
        self._next_step = -1
        self._stream: Stream | None = None

    def batch(self, step: int) -> Batch:
        """This host's rows b = B / num_hosts of the batch of `step`.

        image uint8 [b, H, W, C]; label int32 [b], unless the set is unlabelled; mask uint8 [b, H, W]
        (255: no class), if the config asks for it. Consecutive steps are read ahead; any other step
        starts anew there. Raises UserError when too many examples cannot be decoded.
        """
        return self.made(step).batch

    def made(self, step: int) -> Made:
        """As `batch`, with the account of it."""
        if self._stream is None or step != self._next_step:
            self._seek(step)
        self._num_ready = self._stream.num_ready
        made = next(self._stream)
        account = made.account
        if account.first != self._block(step) * self._blocks.rows:
            raise RuntimeError(f"the input pipeline is out of step at step {step}")
        self._next_step = step + 1
        self._num_bytes += account.met.num_bytes
        self._bad.add(account)
        if not account.valid.all():
            raise UserError(
                f"found no substitute for {account.met.bad[-1]} in {MAX_SUBSTITUTES} tries: "
                f"run `nepa-jax data verify {self.config.path}`"
            )
        return made

    def shown(self, step: int, rows: int) -> np.ndarray:
        """The record numbers of the first rows of the whole batch of `step`, int64 [rows], substitutes
        among them: the rows are made once more."""
        rows = min(rows, self.config.batch_size)
        first = step * self.config.batch_size
        task = Task(first, self._blocks.order.indices(range(first, first + rows)))
        maker = BatchMaker(self.config, self.records, substitute=True)
        return maker(task, np.empty((rows, *maker.image_shape), np.uint8)).account.index

    @property
    def num_examples(self) -> int:
        return self._count

    @property
    def fingerprint(self) -> str:
        return self.records.fingerprint

    def stats(self) -> dict[str, float]:
        """For the training log, of the batches that this loader has returned.

        data/substitutes: bad records, all in all; data/read_mb: image bytes read, all in all;
        data/queue: batches that lay ready when the last one was asked for. At 0 the loader is
        the slower side.
        """
        return {
            "data/substitutes": float(self._bad.total),
            "data/read_mb": self._num_bytes / 1e6,
            "data/queue": float(self._num_ready),
        }

    def close(self) -> None:
        """Stops the threads and processes that read ahead."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _block(self, step: int) -> int:
        host, num_hosts = self._part
        return step * num_hosts + host

    def _seek(self, step: int) -> None:
        self.close()
        maker = BatchMaker(self.config, self.records, substitute=True)
        chosen = slice(self._block(step), END, self._part[1])
        self._stream = Stream(maker, self._blocks, chosen)

    def _check_size(self) -> None:
        if self.num_examples < self.config.batch_size:
            raise UserError(
                f"data.batch_size = {self.config.batch_size}: is more than the "
                f"{self.num_examples} examples of {self.config.path}, split "
                f"{self.config.split!r}; try {self.num_examples} or less"
            )
        if self.config.crop == "none":
            _check_fixed_size(self.records, self.config)


def iter_epoch(
    config: LoaderConfig, host: int = 0, num_hosts: int = 1, first: int | None = None
) -> Iterator[Made]:
    """This host's rows of one pass: every example once, in the order of the record numbers.

    With ``first`` so many records alone, from the beginning; no other is read.

    As Loader.made; rows that fill up the last batch and those of undecodable examples are not valid:
    image 0, label and index -1. Every host gets the same number of batches. `crop` must be center,
    whole or none, `flip` and `augment` off; images are resized exactly; the seed does not matter.
    Raises UserError as Loader does.
    """
    _check(config, host, num_hosts)
    config = replace(config, resize="exact")
    calm = replace(config, flip=False, augment="none")
    if config.crop in RANDOM_CROPS or config != calm:
        keys = ("crop", "flip", "augment")
        found = ", ".join(f"{key}={getattr(config, key)!r}" for key in keys)
        raise UserError(
            f"{found} is random: a pass for evaluation wants crop='center', 'whole' or 'none', "
            "flip=False, augment='none'"
        )
    records = _opened(config)
    count = min(len(records), first or len(records))
    order = Order(count, seed=0, shuffle=False, repeat=False)
    num_steps = math.ceil(count / config.batch_size)
    stream = Stream(
        BatchMaker(config, records, substitute=False),
        Blocks(order, config.batch_size // num_hosts),
        slice(host, num_steps * num_hosts, num_hosts),
    )
    bad = BadCount(config)
    try:
        for _ in range(num_steps):
            made = next(stream)
            bad.add(made.account)
            yield made
    finally:
        stream.close()


def _check(config: LoaderConfig, host: int, num_hosts: int) -> None:
    if not 0 <= host < num_hosts:
        raise ValueError(f"host {host} of {num_hosts}")
    if found := problems(config, num_hosts) or memory_problems(config, num_hosts):
        raise UserError("; ".join(found))


def _opened(config: LoaderConfig) -> RecordSet:
    """The records of a config. Raises UserError if it wants masks and there are none."""
    records = open_dataset(config.path, config.split)
    if config.masks:
        require_masks(records)
    return records


def require_masks(records: RecordSet) -> None:
    """Raises UserError if the split has no masks."""
    if records.masks is None:
        raise UserError(
            f"{records.path}, split {records.split!r}, has no masks: prepare a folder with "
            "images/SPLIT and annotations/SPLIT, as ADE20K has them, by `nepa-jax data prepare`"
        )


def _check_fixed_size(records: RecordSet, config: LoaderConfig) -> None:
    """Without a crop a wrong image_size would make every record a bad one."""
    try:
        width, height = identify(records[0].image).size
    except (DecodeError, RecordError):  # dealt with where it is met
        return
    if (height, width) != tuple(config.image_size):
        raise UserError(
            f"data.crop='none' with model.image_size={config.image_size}, but the images of "
            f"{config.path} are {(height, width)}: use that size, or data.crop=random"
        )
