"""Turns images, in whatever form they come, into ArrayRecord shards and a dataset.json."""

import fcntl
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

from nepa_jax.base.errors import UserError
from nepa_jax.base.private import open_private
from nepa_jax.base.progress import warn
from nepa_jax.data.manifest import FORMAT, MANIFEST, VERSION
from nepa_jax.data.prepare.classes import labels_in
from nepa_jax.data.prepare.labels import imagenet_problems
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.listing import Example, Listing
from nepa_jax.data.prepare.opening import open_listing, source_path
from nepa_jax.data.prepare.pairs import parse_masks
from nepa_jax.data.prepare.reencode import parse_reencode
from nepa_jax.data.prepare.shards import (
    UNFINISHED,
    Shard,
    Target,
    Written,
    clean_up,
    discard,
    write_shards,
)
from nepa_jax.data.prepare.store import Store

MIB = 1 << 20
MAX_LISTED_SKIPS = 1000


def prepare(
    source: str,
    out: str,
    split: str = "train",
    num_shards: int | None = None,
    num_threads: int = 8,
    labels: str | None = None,
    reencode: str | None = None,
    masks: str | None = None,
) -> dict[str, Any]:
    """Writes the images of `source` as the split `split` of the data set in `out`.

    source: a folder, .zip, .tar or compressed .tar with images in class folders, below train/,
      test/ and so on or not, or with no folders (unlabelled); ImageNet's train tar (a tar of
      tars) or validation tar; Hugging Face parquet files; or a set prepared before.
    out: a folder, or a URL of one that fsspec can write to, such as gs://bucket/imagenet.
    labels: a file of lines `FILE_NAME CLASS`, or ImageNet's devkit, for images in no folders.
    reencode: such as "short_side=384,quality=90": stores smaller JPEGs than the original ones.
    masks: of images/SPLIT with masks in annotations/SPLIT, what values are no class: "ignore=11",
      "reduce_zero_label=true" (0 is none, and k is class k - 1), or both.

    The label is the index in the sorted class names (parquet and prepared sets keep theirs).
    Images whose header cannot be read are left out and listed. The same call goes on where a
    killed one stopped, and comes to the same bytes.

    What is not taken is told in a line for each kind. A split that is there already, whole and of
    the same images, is left as it is.

    Returns the split's entry in dataset.json. Raises UserError if the source or its split is
    missing or holds no usable image, if `out` cannot be written, lies in the source or has this
    split of other images, or if its classes are not those of the other splits.
    """
    path = source_path(source, out)
    store = Store(out)
    smaller, rule = parse_reencode(reencode) if reencode else None, parse_masks(masks)
    with _scratch_folder(store, split) as scratch:
        target = Target(store, split, scratch, num_shards, num_threads, smaller)
        unfinished = scratch / UNFINISHED
        with open_listing(path, split, unfinished, num_threads, labels, rule) as listing:
            for line in listing.left_out.lines():
                warn(f"left out: {line}")
            for problem in imagenet_problems(listing, split):
                warn(problem)
            return _write_split(listing, target)


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
    store = Store(out)
    examples = [
        Example(name, label, len(data), partial(bytes, data)) for data, label, name in images
    ]
    with _scratch_folder(store, split) as scratch:
        return _write_split(Listing(examples, tuple(classes)), Target(store, split, scratch))


def default_num_shards(num_bytes: int, num_examples: int) -> int:
    """One shard per 8 MiB up to 64 shards, then one per 256 MiB up to 1,024.

    64 files are enough for many hosts to copy and read side by side; below 8 MiB a file is
    mostly overhead; each shard costs every reading process one open file.
    """
    small, large = num_bytes // (8 * MIB), num_bytes // (256 * MIB)
    return max(1, min(small, max(64, large), 1024, num_examples))


@contextmanager
def _scratch_folder(store: Store, split: str) -> Iterator[Path]:
    """The folder for unfinished work, kept from others while this process works in it."""
    _check_target(store, split)
    scratch = store.scratch(split)
    with _clear_errors(scratch):
        (scratch / UNFINISHED).mkdir(parents=True, exist_ok=True)
        with os.fdopen(open_private(scratch / "lock"), "w") as lock:
            _lock(lock.fileno(), store, split)
            try:
                yield scratch
            finally:
                clean_up(scratch)


@contextmanager
def _clear_errors(scratch: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {scratch} or read the source ({error}): "
            "check the permissions and the free space there"
        ) from error


def _lock(file: int, store: Store, split: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process prepares {store.out}, split {split!r}: wait until it ends"
        ) from error


def _check_target(store: Store, split: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", split):
        raise UserError(f"split name {split!r} is not a plain word: use letters, digits, - and _")
    store.manifest()  # raises, if it is of another program


def _write_split(listing: Listing, target: Target) -> dict[str, Any]:
    """The one path by which records come to be."""
    _check_examples(listing, target)
    listing = _in_known_classes(listing, target)
    shards = _plan_shards(sorted(listing.examples, key=_shuffled_order), target)
    plan = _plan_digest(shards, listing, target)
    if there := _same_split(target, plan):
        warn(f"{target.store.out} has split {target.split!r} of these images already: it is kept")
        return there
    written = write_shards(shards, target, plan)
    entry = {**_split_entry(written, listing, target), "plan": plan}
    if not entry["num_examples"]:
        discard(target)
    _check_skipped(entry, len(listing.examples))
    manifest = _manifest_with_classes(listing, target)
    manifest["splits"][target.split] = entry
    target.store.put_manifest(manifest, target.scratch / UNFINISHED)
    shutil.rmtree(target.scratch)
    return entry


def _same_split(target: Target, plan: str) -> dict[str, Any] | None:
    """The entry of the split, if it is there and whole; None if there is none of that name.

    Raises UserError if it is of other images, or prepared in another way.
    """
    entry = ((target.store.manifest() or {}).get("splits") or {}).get(target.split)
    if entry is None:
        return None
    if entry.get("plan") != plan:
        raise UserError(
            f"{target.store.out} already has a split {target.split!r}, of other images or with "
            "other options: choose another --out or --split"
        )
    whole = all(target.store.size(shard["file"]) == shard["bytes"] for shard in entry["shards"])
    return entry if whole else None


def _check_examples(listing: Listing, target: Target) -> None:
    number = len(listing.examples)
    if not number:
        raise UserError(f"no images for split {target.split!r}: give at least one")
    if target.num_shards is not None and not 1 <= target.num_shards <= number:
        raise UserError(f"--shards={target.num_shards} for {number} images: choose 1 to {number}")
    if listing.masks and target.reencode:
        raise UserError("--reencode makes images smaller, and not their masks: leave it out")
    allowed = range(len(listing.classes)) if listing.labelled else (None,)
    for example in listing.examples:
        if example.label not in allowed:
            raise UserError(
                f"{example.name} has label {example.label} of {len(listing.classes)} classes: "
                "label all images or none, and name every class"
            )


def _in_known_classes(listing: Listing, target: Target) -> Listing:
    """The listing with the labels that its classes have in the splits that are there."""
    known = (target.store.manifest() or {}).get("classes")
    if not known or not listing.classes:
        return listing
    if listing.masks:
        return replace(listing, classes=_classes_of_masks(known, listing.classes, target))
    labels = labels_in(known, listing.classes, target.split, target.store.out)
    examples = [replace(each, label=labels[each.label]) for each in listing.examples]
    return replace(listing, examples=examples, classes=tuple(known))


def _classes_of_masks(
    known: Sequence[str], new: tuple[str, ...], target: Target
) -> tuple[str, ...]:
    """The classes of a set, which its masks have by their numbers; of numbered ones some may lack.

    Raises UserError if they are others.
    """
    numbered = tuple(map(str, range(len(known))))
    if tuple(known) == new or (tuple(known) == numbered and new == numbered[: len(new)]):
        return tuple(known)
    raise UserError(
        f"split {target.split!r} has other classes than {target.store.out} ({len(new)} and "
        f"{len(known)}): give both the same classes.txt, or prepare it into another --out"
    )


def _manifest_with_classes(listing: Listing, target: Target) -> dict[str, Any]:
    """dataset.json as it is, or a new one, with the classes of this split."""
    empty = {"format": FORMAT, "version": VERSION, "name": target.store.name}
    manifest = target.store.manifest() or {**empty, "classes": [], "splits": {}}
    if listing.classes and manifest["classes"] not in ([], list(listing.classes)):
        raise UserError(
            f"{target.store.out} has got other classes meanwhile: give the same command again"
        )
    manifest["classes"] = list(listing.classes) or manifest["classes"]
    return manifest


def _shuffled_order(example: Example) -> tuple[bytes, str]:
    """Sorts by a hash of the name: an order that is fixed, and mixes the classes.

    So each shard, and each run of neighbouring records, is a fair sample of the whole: a set
    may be cut short, or read with little shuffling. No random generator's version matters.
    """
    name = example.name.encode("utf-8", "surrogateescape")
    return hashlib.sha256(name).digest(), example.name


def _plan_shards(examples: Sequence[Example], target: Target) -> list[Shard]:
    total = sum(example.size for example in examples)
    number = target.num_shards or default_num_shards(total, len(examples))
    ends = [len(examples) * (k + 1) // number for k in range(number)]
    return [
        Shard(f"{target.split}-{k:05d}-of-{number:05d}.array_record", examples[start:end])
        for k, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]


def _plan_digest(shards: Sequence[Shard], listing: Listing, target: Target) -> str:
    """Of all that decides the bytes of the shards, as far as it is known before reading."""
    digest = hashlib.sha256(repr((VERSION, listing.classes, target.reencode)).encode())
    for shard in shards:
        digest.update(shard.file.encode())
        for example in shard.examples:
            digest.update(repr((example.name, example.label, example.size)).encode())
            if listing.masks:
                digest.update(repr((example.mask_size, astuple(listing.masks))).encode())
    return digest.hexdigest()


def _split_entry(written: Sequence[Written], listing: Listing, target: Target) -> dict[str, Any]:
    skipped = [item for shard in written for item in shard.skipped]
    counts = sum((Counter(shard.counts) for shard in written), Counter())
    # Of the records' hashes: the same for any number of shards, and each shard can be hashed
    # on its own.
    digest = hashlib.sha256(bytes.fromhex("".join(d for shard in written for d in shard.digests)))
    if listing.masks:  # the same bytes may mean other classes
        digest.update(repr((astuple(listing.masks), listing.classes)).encode())
    shards = [
        {"file": shard.file, "num_records": shard.num_records, "bytes": shard.bytes}
        for shard in written
    ]
    per_class = [counts[str(label)] for label in range(len(listing.classes))]
    masks = {"masks": asdict(listing.masks)} if listing.masks else {}
    return {
        **masks,
        "num_examples": sum(shard.num_records for shard in written),
        "labelled": listing.labelled,
        "bytes": sum(shard.bytes for shard in written),
        "fingerprint": digest.hexdigest(),
        "examples_per_class": [min(per_class), max(per_class)] if listing.labelled else None,
        "reencode": asdict(target.reencode) if target.reencode else None,
        "num_ignored": sum(listing.left_out.counts.values()),
        "num_skipped": len(skipped),
        "skipped": skipped[:MAX_LISTED_SKIPS],
        "shards": shards,
    }


def _check_skipped(entry: dict[str, Any], number: int) -> None:
    """Tells the images that were left out, in a line for each kind of reason."""
    if not entry["num_skipped"]:
        return
    skipped = entry["skipped"]
    if not entry["num_examples"]:
        first = "{name}: {reason}".format(**skipped[0])
        raise UserError(f"none of {number} images is usable: {first}")
    kinds, reasons = LeftOut(), {}
    for item in skipped:  # numbers and names in a reason make no kind of their own
        kind = re.sub(r"'[^']*'|\d+", "", item["reason"])
        kinds.add(reasons.setdefault(kind, item["reason"]), item["name"])
    warn(f"{entry['num_skipped']:,} of {number:,} images are left out; {MANIFEST} lists them")
    for line in kinds.lines():
        warn(f"left out: {line}")
