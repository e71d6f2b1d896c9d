"""Hugging Face parquet shards: columns image {bytes, path} and, unless unlabelled, label."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nepa_jax.data.listing import Example, Listing
from nepa_jax.data.progress import progress
from nepa_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet

SUFFIX = ".parquet"
ROWS = 64  # decoded at a time


def is_parquet(path: Path) -> bool:
    """Whether `path` is a parquet file, or a folder with some in it."""
    if path.is_dir():
        return next(path.rglob(f"*{SUFFIX}"), None) is not None
    return path.suffix == SUFFIX


@contextmanager
def open_parquet(path: Path, split: str, scratch: Path) -> Iterator[Listing]:
    """The examples of `split`: of the files named SPLIT-..., or of all if none is named so.

    Rows can only be read in runs, and records are written in another order: the images are first
    copied, one after the other, to a file in `scratch`, which takes the room of the images again.

    Raises UserError if pyarrow is missing, a file is damaged, or the columns are others.
    """
    files = _files(path, split)
    shards = [_open(file) for file in files]
    names = _class_names(shards[0])
    with open(scratch / "source.images", "w+b") as images:
        rows = [
            (f"{file.stem}/{row}", *found)
            for file, shard in progress(zip(files, shards, strict=True), len(files), "reading")
            for row, found in enumerate(_copy(shard, file, images))
        ]
        images.flush()
        labels = [label for _, label, *_ in rows]
        classes = _classes(labels, names)
        known = {name: number for number, name in enumerate(classes)}
        yield Listing(
            [
                Example(
                    name if not image_path else f"{name}/{image_path}",
                    known.get(label, label) if classes else None,
                    size,
                    partial(os.pread, images.fileno(), size, offset),
                )
                for name, label, image_path, size, offset in rows
            ],
            classes,
        )


def _files(path: Path, split: str) -> Sequence[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.rglob(f"*{SUFFIX}"))
    named = {file.stem.split("-")[0] for file in files if "-of-" in file.stem}
    if not named:
        return files
    if split not in named:
        raise UserError(f"{path} has no split {split!r}: choose --split from {sorted(named)}")
    return [file for file in files if file.stem.startswith(f"{split}-")]


def _open(file: Path) -> "pyarrow.parquet.ParquetFile":
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("parquet files need pyarrow: pip install 'nepa-jax[parquet]'") from error
    try:
        shard = pyarrow.parquet.ParquetFile(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{file} is no parquet file ({error}): fetch it again") from error
    columns = set(shard.schema_arrow.names)
    if "image" not in columns:
        raise UserError(f"{file} has the columns {sorted(columns)}: one must be named image")
    return shard


def _copy(
    shard: "pyarrow.parquet.ParquetFile", file: Path, images: Any
) -> Iterator[tuple[Any, str | None, int, int]]:
    """Appends the images to a file: (label, path, size, offset) of each."""
    columns = [name for name in ("image", "label") if name in shard.schema_arrow.names]
    try:
        for batch in shard.iter_batches(ROWS, columns=columns):
            for row in batch.to_pylist():
                yield row.get("label"), *_append(row["image"], file, images)
    except OSError as error:
        if error.errno:  # of the system, such as a full disk; pyarrow's own have no number
            raise
        raise UserError(f"{file} is damaged ({error}): fetch it again") from error


def _append(image: Any, file: Path, images: Any) -> tuple[str | None, int, int]:
    data = image.get("bytes") if isinstance(image, dict) else image
    if not isinstance(data, bytes):
        raise UserError(f"{file} holds no image bytes, only paths: embed the images in it")
    offset = images.tell()
    images.write(data)
    return (image.get("path") if isinstance(image, dict) else None), len(data), offset


def _class_names(shard: "pyarrow.parquet.ParquetFile") -> tuple[str, ...]:
    """The names that the Hugging Face metadata gives to the numbers in `label`; else none."""
    metadata = (shard.schema_arrow.metadata or {}).get(b"huggingface")
    features = json.loads(metadata).get("info", {}).get("features", {}) if metadata else {}
    return tuple(features.get("label", {}).get("names") or ())


def _classes(labels: Sequence[Any], names: tuple[str, ...]) -> tuple[str, ...]:
    if all(label in (None, -1) for label in labels):
        return ()
    if names:
        return names
    if isinstance(labels[0], str):
        return tuple(sorted(set(labels)))
    return tuple(str(number) for number in range(max(labels) + 1))
