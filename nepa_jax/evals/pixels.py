"""The images' own pixels in the place of an encoder's features: the control that learned nothing at all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.memory import memory_bytes
from nepa_jax.base.progress import progress
from nepa_jax.data.batches import Made
from nepa_jax.data.loader import LoaderConfig, iter_epoch
from nepa_jax.data.records import RecordSet
from nepa_jax.evals.frozen import Frozen
from nepa_jax.evals.subject import Subject

SIDE = 32  # px; larger images are made so small first
POOL = "pixels"


@dataclass(frozen=True)
class Pixels:
    """What probes of an image's vectors take of a :class:`Subject`: labels, and one layer of pixels."""

    subject: Subject

    def require_labels(self) -> None:
        """Raises UserError if a split has none."""
        self.subject.require_labels()

    def train(self) -> Frozen:
        """Of the training split, or of its first ``train_images``."""
        subject = self.subject
        return of_split(small(subject.data), subject.train_records, subject.train_images)

    def test(self) -> Frozen:
        """Of the whole test split."""
        return of_split(small(self.subject.test_data), self.subject.test_records)


def small(data: LoaderConfig) -> LoaderConfig:
    """The same images, cut in the same way, of 32 px a side at most."""
    height, width = data.image_size
    return replace(data, image_size=(min(SIDE, height), min(SIDE, width)))


def of_split(data: LoaderConfig, records: RecordSet, first: int | None = None) -> Frozen:
    """Pixels float32 [n, H * W * C] in [0, 1] as the one layer there is, in the order of the records.

    Args:
        data: path and split, and how images are cut.
        records: of it.
        first: so many records alone, from the beginning; None: all.

    Raises:
        UserError: they would fill more than half of the memory.
    """
    count = min(len(records), first or len(records))
    numbers = count * data.image_size[0] * data.image_size[1] * data.channels
    if 4 * numbers > memory_bytes() / 2:
        raise UserError(
            f"the pixels of {count:,} images of {data.split} take {4 * numbers / 2**30:,.0f} GiB, more "
            "than half of the memory; give fewer --train-images, or leave --pixels out"
        )
    steps = -(-count // data.batch_size)
    made = progress(iter_epoch(data, first=first), steps, f"pixels of {data.split}")
    rows = [_valid(each) for each in made]
    images, labels, index = (np.concatenate(part) for part in zip(*rows, strict=True))
    vectors = images.reshape(len(images), -1).astype(np.float32) / 255.0
    key = f"{records.fingerprint}-{POOL}"
    return Frozen({POOL: [vectors]}, (0,), labels, index, records.classes, data.image_size, key)


def _valid(made: Made) -> Sequence[np.ndarray]:
    """Images, labels and numbers of a batch's rows that hold an image."""
    there = made.account.valid
    parts: Mapping[str, np.ndarray] = made.batch | {"index": made.account.index}
    return [parts[name][there] for name in ("image", "label", "index")]
