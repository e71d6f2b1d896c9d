"""Turns a folder, zip or tar of images into ArrayRecord shards and a dataset.json."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter

from nepa_jax.data.decode import identify
from nepa_jax.data.listing import File, Listing, open_source, select
from nepa_jax.data.progress import ordered_map, progress
from nepa_jax.data.sources import FORMAT, MANIFEST, VERSION, Record, pack, read_manifest
from nepa_jax.errors import UserError

MIB = 1 << 20
WRITER_OPTIONS = "group_size:1,uncompressed"  # fastest to read at random; JPEG does not shrink
MIN_FILE_BYTES = 1 << 16  # a smaller ArrayRecord file cannot be opened
MAX_LISTED_SKIPS = 1000


@dataclass(frozen=True)
class Example:
    """One example to be written. `read` may raise any error; it may run in any thread."""

    name: str
    label: int | None
    size: int
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Target:
    """Where examples go. `num_shards=None` leaves the number to `default_num_shards`."""

    out: Path
    split: str
    classes: tuple[str, ...]
    num_shards: int | None
    num_threads: int
    num_ignored: int = 0


@dataclass(frozen=True)
class Skipped:
    """An example that was left out, and why."""

    name: str
    reason: str


@dataclass
class Tally:
    """What becomes of the examples of one split, over all its shards."""

    digest: Any = field(default_factory=hashlib.sha256)
    skipped: list[Skipped] = field(default_factory=list)


def prepare(
    source: str,
    out: str,
    split: str = "train",
    num_shards: int | None = None,
    num_threads: int = 8,
) -> dict[str, Any]:
    """Writes the images of `source` as the split `split` of the data set in `out`.

    `source` is a folder, .zip, .tar or compressed .tar with images in class folders, below
    train/, test/ and so on or not, or with no folders (unlabelled). The label is the index in
    the sorted class names. Images whose header cannot be read are left out and listed.

    Returns the split's entry in dataset.json. Raises UserError if the source or its split is
    missing or holds no usable image, if `out` cannot be written or has this split already, or
    if its classes are not those of the other splits.
    """
    path, root = Path(source), Path(out)
    if not path.exists():
        raise UserError(f"source {path} does not exist: give a folder, a .zip or a .tar")
    _check_target(root, split)
    with _scratch_folder(root, split) as scratch, open_source(path, scratch) as files:
        listing = select(files, split, path)
        target = Target(root, split, listing.classes, num_shards, num_threads, listing.num_ignored)
        return _write_split(_examples(listing), target, scratch)


def prepare_arrays(
    images: Iterable[tuple[bytes, int | None, str]],
    out: str,
    split: str = "train",
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """Writes encoded images made in memory, as (bytes, label, name), as `prepare` does files.

    Labels index `classes`; either all examples have one or none has. Returns and raises as
    `prepare` does.
    """
    root = Path(out)
    _check_target(root, split)
    examples = [
        Example(name, label, len(data), partial(bytes, data)) for data, label, name in images
    ]
    with _scratch_folder(root, split) as scratch:
        return _write_split(examples, Target(root, split, tuple(classes), None, 1), scratch)


def default_num_shards(num_bytes: int, num_examples: int) -> int:
    """One shard per 8 MiB up to 64 shards, then one per 256 MiB up to 1,024.

    64 files are enough for many hosts to copy and read side by side; below 8 MiB a file is
    mostly overhead; each shard costs every reading process one open file.
    """
    small, large = num_bytes // (8 * MIB), num_bytes // (256 * MIB)
    return max(1, min(small, max(64, large), 1024, num_examples))


def _examples(listing: Listing) -> list[Example]:
    labels = {name: label for label, name in enumerate(listing.classes)}

    def example(file: File) -> Example:
        return Example("/".join(file.parts), labels.get(file.parts[0]), file.size, file.read)

    return [example(file) for file in listing.images]


def _check_target(root: Path, split: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", split):
        raise UserError(f"split name {split!r} is not a plain word: use letters, digits, - and _")
    if (root / MANIFEST).exists() and split in read_manifest(root)["splits"]:
        raise UserError(f"{root} already has a split {split!r}: choose another --out or --split")


@contextmanager
def _scratch_folder(root: Path, split: str) -> Iterator[Path]:
    """A folder inside `root` for unfinished files, so that they are moved by renaming alone."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".prepare-{split}-", dir=root))
    except OSError as error:
        raise UserError(f"cannot write to {root} ({error.strerror}): choose another") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_split(examples: Sequence[Example], target: Target, scratch: Path) -> dict[str, Any]:
    """The one path by which records come to be; `scratch` is on the file system of `out`."""
    _check_examples(examples, target)
    manifest = _manifest_with_classes(target)
    examples = sorted(examples, key=_shuffled_order)
    loaded = progress(
        ordered_map(_load, examples, target.num_threads),
        len(examples),
        f"preparing {target.split}",
    )
    tally = Tally()
    shards = [
        _write_shard(scratch / name, islice(loaded, count), tally)
        for name, count in _shard_plan(examples, target)
    ]
    if not any(shard["num_records"] for shard in shards):
        first = tally.skipped[0]
        raise UserError(f"none of {len(examples)} images is usable: {first.name} {first.reason}")
    for shard in shards:
        os.replace(scratch / shard["file"], target.out / shard["file"])
    manifest["splits"][target.split] = _split_entry(shards, tally, target)
    _write_manifest(target.out, manifest, scratch)
    return manifest["splits"][target.split]


def _check_examples(examples: Sequence[Example], target: Target) -> None:
    if not examples:
        raise UserError(f"no images for split {target.split!r}: give at least one")
    if target.num_shards is not None and not 1 <= target.num_shards <= len(examples):
        raise UserError(
            f"--shards={target.num_shards} for {len(examples)} images: choose 1 to {len(examples)}"
        )
    allowed = range(len(target.classes)) if target.classes else (None,)
    for example in examples:
        if example.label not in allowed:
            raise UserError(
                f"{example.name} has label {example.label} of {len(target.classes)} classes: "
                "label all images or none, and name every class"
            )


def _manifest_with_classes(target: Target) -> dict[str, Any]:
    """dataset.json as it is, or a new one, with the classes of this split settled."""
    empty = {"format": FORMAT, "version": VERSION, "name": target.out.resolve().name}
    exists = (target.out / MANIFEST).exists()
    manifest = read_manifest(target.out) if exists else {**empty, "classes": [], "splits": {}}
    known, new = set(manifest["classes"]), set(target.classes)
    if known and new and known != new:
        raise UserError(
            f"split {target.split!r} has other classes than {target.out} ({len(new)} and "
            f"{len(known)}; {min(known ^ new)!r} is in one only): prepare it into another --out"
        )
    manifest["classes"] = list(target.classes) or manifest["classes"]
    return manifest


def _shuffled_order(example: Example) -> tuple[bytes, str]:
    """Sorts by a hash of the name: an order that is fixed, and mixes the classes.

    So each shard, and each run of neighbouring records, is a fair sample of the whole: a set
    may be cut short, or read with little shuffling. No random generator's version matters.
    """
    name = example.name.encode("utf-8", "surrogateescape")
    return hashlib.sha256(name).digest(), example.name


def _shard_plan(examples: Sequence[Example], target: Target) -> list[tuple[str, int]]:
    """The file name of each shard, and how many of the examples go into it."""
    total = sum(example.size for example in examples)
    number = target.num_shards or default_num_shards(total, len(examples))
    ends = [len(examples) * (k + 1) // number for k in range(number)]
    return [
        (f"{target.split}-{k:05d}-of-{number:05d}.array_record", end - start)
        for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]


def _load(example: Example) -> bytes | Skipped:
    try:
        image = example.read()
        identify(image)
    except Exception as error:  # whatever the disk, the archive or the image has wrong
        return Skipped(example.name, str(error) or type(error).__name__)
    return pack(Record(image, example.label, example.name))


def _write_shard(file: Path, loaded: Iterable[bytes | Skipped], tally: Tally) -> dict[str, Any]:
    try:
        num_records = _write_records(ArrayRecordWriter(str(file), WRITER_OPTIONS), loaded, tally)
    except RuntimeError as error:  # all that the writer raises: no space, no permission
        raise UserError(f"cannot write {file}: {str(error).splitlines()[0]}") from error
    return {"file": file.name, "num_records": num_records, "bytes": file.stat().st_size}


def _write_records(
    writer: ArrayRecordWriter, loaded: Iterable[bytes | Skipped], tally: Tally
) -> int:
    num_records = num_bytes = 0
    for item in loaded:
        if isinstance(item, Skipped):
            tally.skipped.append(item)
            continue
        writer.write(item)
        tally.digest.update(item)
        num_records, num_bytes = num_records + 1, num_bytes + len(item)
    if num_bytes < MIN_FILE_BYTES:  # a filler, after the records that are counted
        writer.write(bytes(MIN_FILE_BYTES))
    writer.close()
    return num_records


def _split_entry(shards: list[dict[str, Any]], tally: Tally, target: Target) -> dict[str, Any]:
    return {
        "num_examples": sum(shard["num_records"] for shard in shards),
        "labelled": bool(target.classes),
        "bytes": sum(shard["bytes"] for shard in shards),
        "fingerprint": tally.digest.hexdigest(),
        "num_ignored": target.num_ignored,
        "num_skipped": len(tally.skipped),
        "skipped": [asdict(item) for item in tally.skipped[:MAX_LISTED_SKIPS]],
        "shards": shards,
    }


def _write_manifest(root: Path, manifest: dict[str, Any], scratch: Path) -> None:
    """Last of all, and by a rename: a data set with a dataset.json is complete."""
    file = scratch / MANIFEST
    file.write_text(json.dumps(manifest, indent=1) + "\n")
    os.replace(file, root / MANIFEST)
