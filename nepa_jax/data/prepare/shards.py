"""Writes examples to ArrayRecord shards: many at a time, each whole or not there at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import Advance, meter
from nepa_jax.base.threads import ordered_map
from nepa_jax.data.decode import identify
from nepa_jax.data.prepare.listing import Example
from nepa_jax.data.prepare.reencode import Reencode
from nepa_jax.data.prepare.store import Store
from nepa_jax.data.records import Record, pack

WRITER_OPTIONS = "group_size:1,uncompressed"  # fastest to read at random; JPEG does not shrink
MIN_FILE_BYTES = 1 << 16  # a smaller ArrayRecord file cannot be opened

PLAN = "plan"
NOTE = ".done.json"
UNFINISHED = "unfinished"

Skipped = dict[str, str]  # an example that was left out: its name, and the reason


@dataclass(frozen=True)
class Shard:
    """A file to be written, and the examples that go into it, in order."""

    file: str
    examples: Sequence[Example]


@dataclass
class Written:
    """What a finished shard holds. Kept in the scratch folder as FILE.done.json.

    digests: the sha256 of each record, in hexadecimal. counts: records per label.
    """

    file: str
    num_records: int = 0
    bytes: int = 0
    digests: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """Where a split goes, and how. `num_shards=None` leaves the number to `default_num_shards`."""

    store: Store
    split: str
    scratch: Path
    num_shards: int | None = None
    num_threads: int = 1
    reencode: Reencode | None = None


def write_shards(shards: Sequence[Shard], target: Target, plan: str) -> list[Written]:
    """Writes the shards that are not finished yet; returns what all of them hold.

    `plan` says what the shards are made of and how. What an earlier, interrupted run of the same
    plan has finished is kept; of another plan nothing is. Raises UserError if the disk is full.
    """
    _start_over_unless(plan, target)
    finished = {shard.file: _finished(shard.file, target) for shard in shards}
    total = sum(len(shard.examples) for shard in shards)
    done = sum(len(shard.examples) for shard in shards if finished[shard.file])
    missing = [shard for shard in shards if not finished[shard.file]]
    with meter(total, f"preparing {target.split}", done) as advance:
        for written in ordered_map(partial(_write, target, advance), missing, target.num_threads):
            finished[written.file] = written
    return [written for written in finished.values() if written]


def discard(target: Target) -> None:
    """Removes the finished shards of a split that is not to be."""
    for note in target.scratch.glob(f"*{NOTE}"):
        target.store.remove(note.name.removesuffix(NOTE))
        note.unlink()


def clean_up(scratch: Path) -> None:
    """Removes all that a restart has no use for: everything, if no shard is finished."""
    shutil.rmtree(scratch / UNFINISHED, ignore_errors=True)
    if not any(scratch.glob(f"*{NOTE}")):
        shutil.rmtree(scratch, ignore_errors=True)


def _start_over_unless(plan: str, target: Target) -> None:
    file = target.scratch / PLAN
    if file.exists() and file.read_text() == plan:
        return
    discard(target)
    _write_whole(file, plan)


def _finished(file: str, target: Target) -> Written | None:
    note = target.scratch / f"{file}{NOTE}"
    if not note.exists():
        return None
    written = Written(**json.loads(note.read_text()))
    return written if target.store.size(file) == written.bytes else None


def _write(target: Target, advance: Advance, shard: Shard) -> Written:
    """Writes one shard to the scratch folder, moves it to the store, and notes that it is done."""
    written, file = Written(shard.file), target.scratch / UNFINISHED / shard.file
    try:
        _write_records(file, _load_all(shard, target, advance), written)
    except RuntimeError as error:  # all that the writer raises: no space, no permission
        raise UserError(f"cannot write {file}: {str(error).splitlines()[0]}") from error
    written.bytes = file.stat().st_size
    target.store.put(file, shard.file)
    _write_whole(target.scratch / f"{shard.file}{NOTE}", json.dumps(asdict(written)))
    return written


def _write_records(file: Path, loaded: Iterable[Record | Skipped], written: Written) -> None:
    writer, num_bytes = ArrayRecordWriter(str(file), WRITER_OPTIONS), 0
    for item in loaded:
        if isinstance(item, dict):
            written.skipped.append(item)
            continue
        data = pack(item)
        writer.write(data)
        written.num_records, num_bytes = written.num_records + 1, num_bytes + len(data)
        written.digests.append(hashlib.sha256(data).hexdigest())
        label = str(item.label)
        written.counts[label] = written.counts.get(label, 0) + 1
    if num_bytes < MIN_FILE_BYTES:  # a filler, after the records that are counted
        writer.write(bytes(MIN_FILE_BYTES))
    writer.close()
    _check(file, written.num_records + (num_bytes < MIN_FILE_BYTES))


def _check(file: Path, num_records: int) -> None:
    """The index is written last: a file that has it is whole."""
    reader = ArrayRecordReader(str(file))
    if (found := reader.num_records()) != num_records:
        raise RuntimeError(f"{found} of {num_records} records were written")
    reader.close()


def _load_all(shard: Shard, target: Target, advance: Advance) -> Iterator[Record | Skipped]:
    for example in shard.examples:
        yield _load(example, target.reencode)
        advance(1)


def _load(example: Example, convert: Reencode | None) -> Record | Skipped:
    try:
        image = example.read()
        size = identify(image).size[::-1]
        mask = example.read_mask(size) if example.read_mask else None
        image = convert(image) if convert else image
        return Record(image, example.label, example.name, mask)
    except OSError as error:
        return {"name": example.name, "reason": error.strerror or str(error)}
    except Exception as error:  # whatever the archive or the image has wrong
        return {"name": example.name, "reason": str(error) or type(error).__name__}


def _write_whole(file: Path, text: str) -> None:
    unfinished = file.parent / UNFINISHED / file.name
    unfinished.write_text(text)
    os.replace(unfinished, file)
