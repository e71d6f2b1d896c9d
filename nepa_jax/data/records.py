"""Read access to prepared records: the ArrayRecord shards that a dataset.json lists."""

import errno
import os
import re
import resource
from bisect import bisect_right
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from nepa_jax.base.errors import UserError
from nepa_jax.data.manifest import AGAIN, cannot_read, read_manifest
from nepa_jax.data.masks import MaskRule, class_mask

OPENING_THREADS = 16  # a mounted bucket takes its time for every file
READER_OPTIONS = "readahead_buffer_size:0"  # records are read one by one, at random
READER_BUFFER = 1 << 15

SPARE_FILES = 256  # open files for all else that a process does


class RecordError(Exception):
    """A stored record cannot be read: its block is damaged or is no record of ours."""


@dataclass(frozen=True, slots=True)
class Record:
    """One example: the encoded image, its label (None if unlabelled), its name, and the encoded
    mask of its pixels' classes (None in a set without)."""

    image: bytes
    label: int | None
    name: str
    mask: bytes | None = None


FIELD_TYPES = {
    "image": (bytes,),
    "label": (int, type(None)),
    "name": (str,),
    "mask": (bytes, type(None)),
}


def pack(record: Record) -> bytes:
    """The stored form of a record: a msgpack map without the keys of what is None."""
    fields: dict[str, Any] = {"image": record.image, "name": record.name}
    if record.label is not None:
        fields["label"] = record.label
    if record.mask is not None:
        fields["mask"] = record.mask
    return msgpack.packb(fields, unicode_errors="surrogateescape")


def unpack(data: bytes, num_classes: int) -> Record:
    """The inverse of `pack`, for a set of so many classes; 0: unlabelled.

    Raises RecordError for any other bytes.
    """
    try:
        get = msgpack.unpackb(data, unicode_errors="surrogateescape").get
    except Exception as error:  # msgpack raises several kinds, and it may be no map
        raise RecordError(f"not a record of this format ({error})") from error
    for key, kinds in FIELD_TYPES.items():
        if type(get(key)) not in kinds:  # a bool is an int, and no label
            raise RecordError(f"not a record of this format ({key} is {type(get(key)).__name__})")
    label = get("label")
    if label not in (range(num_classes) if num_classes else (None,)):
        raise RecordError(f"label {label} in a set of {num_classes} classes")
    return Record(get("image"), label, get("name"), get("mask"))


class Shard(NamedTuple):
    """A file of records; filler records after the first `num_records` are none of the set's."""

    file: str
    num_records: int
    bytes: int


@dataclass(frozen=True)
class RecordSet:
    """The records of one split, by number. Pickles without open files.

    classes: the class names by label; empty if nothing in the data set is labelled.
    masks: what the values of the masks mean; None if the split has none.
    """

    path: str
    split: str
    shards: tuple[Shard, ...]
    labelled: bool
    classes: tuple[str, ...]
    fingerprint: str
    masks: MaskRule | None = None

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        """Reads one record. Safe to call from many threads, once `open` has been.

        Raises IndexError out of range; RecordError if the record is damaged or is none of this
        set; UserError or UnavailableError if its file cannot be opened or read at all.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        position = index - (self._ends[shard - 1] if shard else 0)
        try:
            data = self._readers[shard].read([position])[0]
        except RuntimeError as error:
            failure = _system_error(error)
            # A disk's bad spot costs the records on it; anything else would cost all of them.
            if failure is not None and failure.errno != errno.EIO:
                raise cannot_read(self._file(self.shards[shard]), failure) from error
            raise RecordError(f"damaged block ({_in_short(error)})") from error
        return unpack(data, self.num_classes if self.labelled else 0)

    def read(self, indices: Iterable[int]) -> list[Record]:
        """Reads several records, in the given order. Raises as `[]` does."""
        return [self[int(index)] for index in indices]

    def mask(self, record: Record, size: tuple[int, int] | None = None) -> np.ndarray:
        """The classes of a record's pixels, uint8 [h, w], 255 for none.

        size: of its image, where it is known; the mask must have it.

        Raises RecordError if the record has no mask, DecodeError as `class_mask` does.
        """
        if record.mask is None or self.masks is None:
            raise RecordError("there is no mask")
        return class_mask(record.mask, self.masks, self.num_classes, size)

    def open(self) -> None:
        """Opens all shards, which the first read would do.

        Raises UserError if one is missing, damaged, shorter than it should be, or may not be
        read, or if so many files may not be open; UnavailableError if the storage is away.
        """
        self._readers  # noqa: B018

    @cached_property
    def _readers(self) -> list[ArrayRecordReader]:
        allow_open_files(len(self.shards))
        with ThreadPoolExecutor(min(OPENING_THREADS, len(self.shards))) as pool:
            return list(pool.map(self._open_shard, self.shards))

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(shard.num_records for shard in self.shards))

    def _open_shard(self, shard: Shard) -> ArrayRecordReader:
        file = self._file(shard)
        try:
            size = file.stat().st_size
        except FileNotFoundError as error:
            raise UserError(f"shard {file} is missing: {AGAIN}") from error
        except OSError as error:
            raise cannot_read(file, error) from error
        if size != shard.bytes:
            raise UserError(f"shard {file} has {size} bytes instead of {shard.bytes}: {AGAIN}")
        return _open_reader(file, shard.num_records)

    def _file(self, shard: Shard) -> Path:
        return Path(self.path, shard.file)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if not key.startswith("_")}


def open_dataset(path: str | Path, split: str = "train") -> RecordSet:
    """Opens one split of a prepared data set, and all of its shards.

    Raises UserError if the data set or the split is missing, or as `RecordSet.open`.
    """
    root, manifest = Path(path), read_manifest(path)
    if split not in manifest["splits"]:
        known = ", ".join(sorted(manifest["splits"]))
        raise UserError(f"{root} has no split {split!r}: choose one of {known}")
    info = manifest["splits"][split]
    shards = [Shard(s["file"], s["num_records"], s["bytes"]) for s in info["shards"]]
    records = RecordSet(
        path=str(root),
        split=split,
        shards=tuple(shards),
        labelled=info["labelled"],
        classes=tuple(manifest["classes"]),
        fingerprint=info["fingerprint"],
        masks=MaskRule(**info["masks"]) if "masks" in info else None,
    )
    records.open()
    return records


def allow_open_files(number: int) -> None:
    """Lets this process open so many files more, as far as its hard limit allows.

    The usual limit of 1,024 is as much as the largest sets have shards.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _num_open_files() + number + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _num_open_files() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # not Linux
        return SPARE_FILES


def _open_reader(file: Path, num_records: int) -> ArrayRecordReader:
    reader = ArrayRecordReader(
        str(file), options=READER_OPTIONS, file_reader_buffer_size=READER_BUFFER
    )
    if not reader.ok():
        error = _failure(reader)
        failure = _system_error(error)
        if failure is not None:
            raise cannot_read(file, failure) from error
        raise UserError(f"shard {file} is damaged ({_in_short(error)}): {AGAIN}") from error
    if (found := reader.num_records()) < num_records:
        raise UserError(f"shard {file} has {found} records instead of {num_records}: {AGAIN}")
    return reader


def _failure(reader: ArrayRecordReader) -> RuntimeError:
    """Why a reader could not open its file: it tells when it is used."""
    try:
        reader.read([0])
    except RuntimeError as error:
        return error
    return RuntimeError("unknown reason")


_CODES = {os.strerror(code): code for code in errno.errorcode}


def _system_error(error: RuntimeError) -> OSError | None:
    """The error of the system behind one of the reader, which has only its text; None if the
    file's contents are to blame."""
    found = re.match(r"\w+\(\) failed: ([^;]+)", str(error))
    return OSError(_CODES.get(found[1], errno.EIO), found[1]) if found else None


def _in_short(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
