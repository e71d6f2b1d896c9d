"""What is evaluated: an encoder on the splits of a data set. Probes get it, and ask it for features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from nepa_jax.base.errors import UserError
from nepa_jax.config import evaluation_data
from nepa_jax.data.loader import LoaderConfig
from nepa_jax.data.records import RecordSet, open_dataset
from nepa_jax.evals import encoders, frozen
from nepa_jax.loading import Loaded

BATCH = 64  # images at a time, on all devices


@dataclass(frozen=True)
class Subject:
    """An encoder, with the attention it is to have, and where it is to be probed."""

    loaded: Loaded
    data: LoaderConfig  # of the training split; batch_size only says how many go at a time
    test_split: str
    layers: tuple[int, ...]  # counted from 0, the embedding
    pools: tuple[str, ...]  # of the images' vectors
    train_images: int | None = None  # the first so many alone; None: all

    @property
    def test_data(self) -> LoaderConfig:
        return replace(self.data, split=self.test_split)

    @cached_property
    def train_records(self) -> RecordSet:
        return open_dataset(self.data.path, self.data.split)

    @cached_property
    def test_records(self) -> RecordSet:
        return open_dataset(self.data.path, self.test_split)

    @property
    def attention(self) -> str:
        return encoders.attention_of(self.loaded)

    def train(self, pools: Sequence[str] | None = None) -> frozen.Frozen:
        """Features of the training split, or of its first ``train_images``, by some poolings."""
        return frozen.freeze(
            self.loaded, self.data, pools or self.pools, self.layers, self.train_images
        )

    def test(self, pools: Sequence[str] | None = None) -> frozen.Frozen:
        """Features of the whole test split."""
        return frozen.freeze(self.loaded, self.test_data, pools or self.pools, self.layers)

    def untrained(self) -> "Subject":
        """The same with the encoder's fresh weights: the control of every number."""
        return replace(self, loaded=encoders.untrained(self.loaded))

    def require_labels(self) -> None:
        """Raises UserError if a split has none."""
        for records in (self.train_records, self.test_records):
            if not records.labelled:
                raise UserError(
                    f"{records.path}, split {records.split!r}: the images have no labels, which "
                    "this evaluation counts; prepare them from class folders, or with --labels=FILE"
                )


def subject_of(
    loaded: Loaded,
    data: str,
    *,
    splits: tuple[str, str] = ("train", "validation"),
    layer: int | None = None,
    pools: tuple[str, ...] = ("mean",),
    attention: str | None = None,
    image_size: int | None = None,
    train_images: int | None = None,
) -> Subject:
    """Puts a subject together and checks it, before anything is encoded.

    Args:
        loaded: any encoder.
        data: a prepared data set.
        splits: to train probes on, and to test them on.
        layer: 0 is the embedding, -1 the last; None: all.
        pools: names of :data:`nepa_jax.evals.features.POOLS`.
        attention: causal or bidirectional; None: as it was trained.
        image_size: px; None: the encoder's own.
        train_images: the first so many of the training split alone; None: all.

    Raises:
        UserError: there is no such split, layer or class token; or another mistake of these.
    """
    loaded = encoders.with_attention(loaded, attention)
    wanted = replace(evaluation_data(loaded.config), path=data, split=splits[0], batch_size=BATCH)
    if image_size is not None:
        wanted = replace(wanted, image_size=(image_size, image_size))
    _, layers = frozen.asked(loaded, wanted, pools, None if layer is None else [layer])
    subject = Subject(loaded, wanted, splits[1], layers, pools, train_images)
    for records in (subject.train_records, subject.test_records):  # raises if one is not there
        records.open()
    return subject
