"""Read access to prepared records: dataset.json and the ArrayRecord shards it lists."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgpack
from array_record.python.array_record_data_source import ArrayRecordDataSource

from nepa_jax.errors import UserError

MANIFEST = "dataset.json"
FORMAT = "nepa_jax.array_record"
VERSION = 1


class RecordError(Exception):
    """A stored record cannot be read: its block is damaged or is no record of ours."""


@dataclass(frozen=True, slots=True)
class Record:
    """One example: the encoded image, its label (None if unlabelled) and its name."""

    image: bytes
    label: int | None
    name: str


def pack(record: Record) -> bytes:
    """The stored form of a record: a msgpack map; an unlabelled record has no `label` key."""
    fields: dict[str, Any] = {"image": record.image, "name": record.name}
    if record.label is not None:
        fields["label"] = record.label
    return msgpack.packb(fields, unicode_errors="surrogateescape")


def unpack(data: bytes) -> Record:
    """The inverse of `pack`. Raises RecordError for any other bytes."""
    try:
        fields = msgpack.unpackb(data, unicode_errors="surrogateescape")
        return Record(fields["image"], fields.get("label"), fields["name"])
    except Exception as error:  # msgpack raises several kinds, and the map may be anything
        raise RecordError(f"not a record of this format ({error})") from error


@dataclass(frozen=True)
class RecordSet:
    """The records of one split, by number. Pickles without open files.

    shards: one "file[0:N]" per shard; the counts keep filler records out of sight.
    classes: the class names by label; empty if nothing in the data set is labelled.
    """

    path: str
    split: str
    shards: tuple[str, ...]
    num_examples: int
    labelled: bool
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> Record:
        """Reads one record. Safe to call from many threads.

        Raises IndexError out of range, RecordError if the stored block is damaged.
        """
        if not 0 <= index < self.num_examples:
            raise IndexError(f"record {index} of {self.num_examples}")
        try:
            data = self._source[index]
        except Exception as error:  # the reader raises several kinds for a damaged file
            raise RecordError(f"damaged block ({str(error).splitlines()[0][:200]})") from error
        return unpack(data)

    def read(self, indices: Iterable[int]) -> list[Record]:
        """Reads several records, in the given order. Raises as `[]` does."""
        return [self[int(index)] for index in indices]

    @cached_property
    def _source(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(list(self.shards))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_source"}


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The contents of `path`/dataset.json.

    Raises UserError if the folder or the file is missing, or is not of this format.
    """
    root = Path(path)
    if "://" in str(path):
        raise UserError(f"data folder {path} is not on this machine: mount it, or copy it here")
    if not root.is_dir():
        raise UserError(f"data folder {root} does not exist: make it with `nepa-jax data prepare`")
    file = root / MANIFEST
    if not file.is_file():
        raise UserError(f"{root} has no {MANIFEST}: make one with `nepa-jax data prepare`")
    return check_manifest(file.read_text(), str(file))


def check_manifest(text: str, file: str) -> dict[str, Any]:
    """A dataset.json as a dict. Raises UserError if it is not of this format."""
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}): prepare the data again") from error
    found = (manifest.get("format"), manifest.get("version")) if manifest else None
    if found != (FORMAT, VERSION):
        raise UserError(f"{file} is of format {found}, not {(FORMAT, VERSION)}: prepare it again")
    return manifest


def open_dataset(path: str | Path, split: str = "train") -> RecordSet:
    """Opens one split of a prepared data set, after checking that its shards are all there.

    Raises UserError if the data set, the split or a shard is missing, or a shard's size is
    not the recorded one.
    """
    root, manifest = Path(path), read_manifest(path)
    if split not in manifest["splits"]:
        known = ", ".join(sorted(manifest["splits"]))
        raise UserError(f"{root} has no split {split!r}: choose one of {known}")
    info = manifest["splits"][split]
    for shard in info["shards"]:
        _check_shard(root / shard["file"], shard["bytes"])
    return RecordSet(
        path=str(root),
        split=split,
        shards=tuple(f"{root / s['file']}[0:{s['num_records']}]" for s in info["shards"]),
        num_examples=info["num_examples"],
        labelled=info["labelled"],
        classes=tuple(manifest["classes"]),
        fingerprint=info["fingerprint"],
    )


def _check_shard(file: Path, size: int) -> None:
    if not file.is_file():
        raise UserError(f"shard {file} is missing: copy it again or prepare the data again")
    if (found := file.stat().st_size) != size:
        raise UserError(
            f"shard {file} has {found} bytes instead of {size}: copy it again or prepare again"
        )
