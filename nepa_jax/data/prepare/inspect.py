"""Looks at a prepared data set: what it holds, and whether all of it can be read."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import progress
from nepa_jax.base.text import printable
from nepa_jax.base.threads import ordered_map
from nepa_jax.data.batches import BadRecord
from nepa_jax.data.decode import DecodeError, decode, decoded, identify
from nepa_jax.data.manifest import read_manifest
from nepa_jax.data.masks import IGNORED
from nepa_jax.data.records import RecordError, RecordSet, open_dataset

SAMPLE = 512
COLUMNS, TILE = 8, 112  # of a contact sheet; px
LISTED = 20  # bad records that are named


def inspect(path: str) -> dict[str, Any]:
    """What is in the data set at `path`: name, classes, and for each split its counts, sizes
    and, from a sample of its records, the widths, heights, formats and modes of its images.

    Raises UserError if the data set or a shard is missing or has the wrong size.
    """
    manifest = read_manifest(path)
    return {
        "path": str(path),
        "name": manifest["name"],
        "num_classes": len(manifest["classes"]),
        "classes": manifest["classes"],
        "splits": {
            split: {**_summary(info), "images": _sample(open_dataset(path, split))}
            for split, info in manifest["splits"].items()
        },
    }


def text_of(found: dict[str, Any]) -> str:
    """What `inspect` found, for people."""
    classes = [printable(name) for name in found["classes"]]
    lines = [json.dumps({key: value for key, value in found.items() if key != "classes"}, indent=2)]
    lines.append(f"classes: {', '.join(classes[:10])}{' …' if len(classes) > 10 else ''}")
    if any(split["images"]["unreadable"] for split in found["splits"].values()):
        lines.append(f"some records cannot be read: nepa-jax data verify {found['path']}")
    return "\n".join(lines)


def contact_sheet(path: str, out: str) -> list[BadRecord]:
    """Draws up to 64 records of each split, evenly spaced, into the PNG file `out`.

    A row of text above the pictures of a split names it; a record that cannot be read or decoded
    stays black. Returns those.
    Raises UserError as `inspect` does, or if `out` cannot be written.
    """
    black: list[BadRecord] = []
    rows = [
        row
        for split in sorted(read_manifest(path)["splits"])
        for row in _sheet_rows(open_dataset(path, split), black)
    ]
    sheet = Image.new("RGB", (COLUMNS * TILE, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    try:
        sheet.save(out, "PNG")
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror}): choose another file") from error
    return black


def _sheet_rows(records: RecordSet, black: list[BadRecord]) -> Iterator[Image.Image]:
    title = Image.new("RGB", (COLUMNS * TILE, 20))
    text = f"{records.split}: {len(records):,} images, {records.num_classes} classes"
    ImageDraw.Draw(title).text((4, 4), text, "white")
    yield title
    chosen = np.linspace(0, len(records) - 1, min(COLUMNS**2, len(records)), dtype=int)
    for start in range(0, len(chosen), COLUMNS):
        row = Image.new("RGB", (COLUMNS * TILE, TILE))
        for column, index in enumerate(chosen[start : start + COLUMNS]):
            try:
                row.paste(_tile(records, int(index)), (column * TILE, 0))
            except (RecordError, DecodeError) as error:
                black.append(BadRecord(int(index), records.split, str(error)))
        yield row


def _tile(records: RecordSet, index: int) -> Image.Image:
    record = records[index]
    tile = ImageOps.fit(decode(record.image), (TILE, TILE))
    if record.label is not None:
        name = printable(records.classes[record.label])
        ImageDraw.Draw(tile).text((3, 3), name, "white", stroke_width=1, stroke_fill="black")
    return tile


def verify(path: str, split: str | None = None, num_threads: int = 8) -> dict[str, list[BadRecord]]:
    """Reads and decodes every record of one split, or of all.

    Returns the bad records of each split; empty lists if all is well. Raises UserError if the
    data set, the split or a shard is missing or has the wrong size.
    """
    splits = [split] if split else sorted(read_manifest(path)["splits"])
    return {name: _bad_records(open_dataset(path, name), num_threads) for name in splits}


def _bad_records(records: RecordSet, num_threads: int) -> list[BadRecord]:
    def check(index: int) -> BadRecord | None:
        name = ""
        try:
            record = records[index]
            name = record.name
            with decoded(record.image) as pixels:
                if records.masks:
                    records.mask(record, pixels.shape[:2])
        except (RecordError, DecodeError) as error:
            return BadRecord(index, name, str(error))
        return None

    found = ordered_map(check, range(len(records)), num_threads)
    found = progress(found, len(records), f"verifying {records.split}")
    return [bad for bad in found if bad is not None]


def named(bad: Sequence[BadRecord], most: int = LISTED) -> list[str]:
    """The bad records, a line each; of more than `most` the first, and the number of each kind."""
    lines = [str(record) for record in bad[:most]]
    if len(bad) > most:
        kinds = Counter(_kind(record.reason) for record in bad)
        lines += [f"in all {number:,}: {kind}" for kind, number in kinds.most_common(LISTED)]
    return lines


def _kind(reason: str) -> str:
    """A reason without its particulars."""
    return re.sub(r"\d+", "N", reason.partition(" (")[0])


def _summary(info: dict[str, Any]) -> dict[str, Any]:
    counts = {key: value for key, value in info.items() if key not in ("shards", "skipped")}
    return {**counts, "num_shards": len(info["shards"])}


def _sample(records: RecordSet) -> dict[str, Any]:
    """Facts read from the headers of up to SAMPLE records. Bad ones are for `verify` to name."""
    images, sizes, pixels = [], [], np.zeros(256, np.int64)
    chosen = np.linspace(0, len(records) - 1, min(SAMPLE, len(records)), dtype=int)
    for index in chosen:
        try:
            record = records[int(index)]
            image = identify(record.image)
            if records.masks:
                mask = records.mask(record, image.size[::-1])
                pixels += np.bincount(mask.reshape(-1), minlength=256)
            images.append(image)
            sizes.append(len(record.image))
        except (RecordError, DecodeError):
            continue
    return {
        "sampled": len(images),
        "unreadable": len(chosen) - len(images),
        "width": _spread([image.width for image in images]),
        "height": _spread([image.height for image in images]),
        "bytes": _spread(sizes),
        "formats": dict(Counter(image.format for image in images)),
        "modes": dict(Counter(image.mode for image in images)),
        **(_of_pixels(pixels, records.classes) if records.masks else {}),
    }


def _of_pixels(counts: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The share of each class in the pixels that have one, and of those that have none in all."""
    known = counts[: len(classes)]
    shares = known / max(known.sum(), 1)
    return {
        "pixels": {
            name: round(float(share), 4) for name, share in zip(classes, shares, strict=True)
        },
        "pixels_without_class": round(float(counts[IGNORED] / max(counts.sum(), 1)), 4),
    }


def _spread(values: list[int]) -> dict[str, int]:
    if not values:
        return {}
    return {"min": min(values), "median": int(np.median(values)), "max": max(values)}
