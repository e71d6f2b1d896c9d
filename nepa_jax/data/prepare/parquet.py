"""Hugging Face parquet files: images as {bytes, path} or bytes and, unless unlabelled, classes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.base.progress import progress, warn
from nepa_jax.base.text import parse_json
from nepa_jax.data.prepare.classes import are_ids, in_order, normal
from nepa_jax.data.prepare.columns import IMAGE_COLUMNS, LABEL_COLUMNS, first_of, plain
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.listing import IMAGE_SUFFIXES, LARGE, MAX_BYTES, Example, Listing
from nepa_jax.data.prepare.parquet_files import SUFFIXES, parquet_files, split_files, walk

Opened = Any  # a pyarrow.parquet.ParquetFile; pyarrow may not be installed

MAGIC = b"PAR1"
ROWS = 64  # decoded at a time
LOOKED_AT = 4  # parquet files, to see whether they have images
MAX_NUMBER = 100_000  # of a class; larger ones are names

DAMAGED_FILES = "parquet files that are damaged (fetch them again)"
DAMAGED_ROWS = "rows in damaged parts of parquet files (fetch them again)"
OTHER_FILES = "parquet files with other columns, or other names of the classes"
NO_IMAGE = "rows without an image"
PATHS = "rows with the path of an image, without its bytes"
UNLABELLED = "rows without a label"
OUTSIDE = "rows with a label that has no class name"


@dataclass(frozen=True)
class Row:
    """One image, as it lies in the copy."""

    name: str
    label: Any
    size: int
    offset: int


@dataclass(frozen=True)
class Schema:
    """The columns of a file that count, and the class names by number, if it has some."""

    image: str
    label: str | None
    names: tuple[str, ...]


def is_parquet(path: Path) -> bool:
    """Whether `path` is a parquet file, or a folder of some: one that holds images only in them."""
    if path.is_file():
        with open(path, "rb") as file:
            return path.suffix.lower() in SUFFIXES or file.read(len(MAGIC)) == MAGIC
    files = parquet_files(path)
    if not files or not _has_images(path):
        return bool(files)
    return any(_holds_images(file) for file in files[:LOOKED_AT])


@contextmanager
def open_parquet(path: Path, split: str, scratch: Path) -> Iterator[Listing]:
    """The examples of `split`, which the names of files or their folders spell; of all files, if
    they spell none.

    Rows can only be read in runs, and records are written in another order: the images are first
    copied, one after the other, to a file in `scratch`, which takes the room of the images again.

    Raises UserError if pyarrow is missing, there is no such split, there are several subsets, no
    file can be read, or the columns are others.
    """
    left_out = LeftOut()
    files = split_files(path, split, left_out)
    shards = _open_all(files, left_out)
    first, shard = next(iter(shards.items()))
    schema = _schema(shard, first)
    _tell_label(schema, shard, path)
    with open(scratch / "source.images", "w+b") as images:
        rows = [
            row
            for file, shard in progress(shards.items(), len(shards), "reading")
            for row in _copy(shard, file, schema, images, left_out)
        ]
        images.flush()
        if not rows:
            raise UserError(
                f"{path} holds no image bytes, only paths: embed the images in it"
                if PATHS in left_out.counts
                else f"no images in {path} ({'; '.join(left_out.lines()) or 'no rows'})"
            )
        labels, classes = _classes([row.label for row in rows], schema, path)
        examples = [
            Example(row.name, label, row.size, _reader(images, row))
            for row, label in zip(rows, labels, strict=True)
            if _is_labelled(row.name, label, classes, left_out)
        ]
        yield Listing(examples, classes, left_out)


def _reader(images: BinaryIO, row: Row) -> partial[bytes]:
    return partial(os.pread, images.fileno(), row.size, row.offset)


def _has_images(root: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in walk(root))


def _holds_images(file: Path) -> bool:
    """Whether a file has images; not, if it cannot be known."""
    try:
        _schema(_open(file), file)
    except (UserError, ValueError):
        return False
    return True


def _open(file: Path) -> Opened:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("parquet files need pyarrow: pip install 'nepa-jax[parquet]'") from error
    try:
        return pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise ValueError(in_short(error)) from error
    except OSError as error:
        if error.errno:  # of the system; pyarrow's own have no number
            raise
        raise ValueError(in_short(error)) from error


def _open_all(files: Sequence[Path], left_out: LeftOut) -> Mapping[Path, Opened]:
    """The files that can be opened and are like the first of them."""
    shards: dict[Path, Opened] = {}
    first, mistakes = None, []
    for file in files:
        try:
            shard = _open(file)
            schema = _schema(shard, file)
        except ValueError as error:
            mistakes.append(UserError(f"{file} is no parquet file ({error}): fetch it again"))
            left_out.add(DAMAGED_FILES, str(file))
            continue
        except UserError as error:
            mistakes.append(error)
            left_out.add(OTHER_FILES, str(file))
            continue
        first = first or schema
        if schema == first:
            shards[file] = shard
        else:
            left_out.add(OTHER_FILES, str(file))
    if not shards:
        raise mistakes[0]
    return shards


def _schema(shard: Opened, file: Path) -> Schema:
    """Raises UserError if there is no column of images, or none of several can be chosen."""
    schema = shard.schema_arrow
    features = _features(schema.metadata)
    image = _image_column(schema, features, file)
    others = [name for name in schema.names if name != image]
    classed = [name for name in others if _feature(features, name).get("_type") == "ClassLabel"]
    label = first_of(LABEL_COLUMNS, others) or (classed[0] if classed else None)
    found = _feature(features, label).get("names") if label else None
    names = found if isinstance(found, list) and all(isinstance(n, str) for n in found) else []
    return Schema(image, label, tuple(map(normal, names)))


def _tell_label(schema: Schema, shard: Opened, path: Path) -> None:
    """Says which column has the classes, where that is a choice."""
    others = [name for name in shard.schema_arrow.names if name != schema.image]
    if schema.label is None and others:
        warn(
            f"the images of {path} are unlabelled: none of the columns {sorted(others)} is named "
            "as one of classes, such as label"
        )
    elif sum(plain(name) in LABEL_COLUMNS for name in others) > 1:
        warn(f"classes are read from the column {schema.label!r} of {path}")


def _features(metadata: Mapping[bytes, bytes] | None) -> Mapping[str, Any]:
    """What Hugging Face has written about the columns; nothing, if it is not of their form."""
    try:
        found = parse_json((metadata or {}).get(b"huggingface", b"{}"), dict)
        found = found.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


def _feature(features: Mapping[str, Any], column: str) -> Mapping[str, Any]:
    found = features.get(column)
    return found if isinstance(found, dict) else {}


def _image_column(schema: Any, features: Mapping[str, Any], file: Path) -> str:
    found = [name for name in schema.names if _can_be_image(schema.field(name).type)]
    typed = [name for name in found if _feature(features, name).get("_type") == "Image"]
    column = first_of(IMAGE_COLUMNS, found)
    if column is None and len(typed or found) == 1:
        column = (typed or found)[0]
    if column is not None:
        return column
    named = first_of(IMAGE_COLUMNS, schema.names)
    if named is not None and not found:
        raise UserError(
            f"{file} holds in {named!r} no image bytes, only paths or other values "
            f"({schema.field(named).type}): embed the images in it"
        )
    raise UserError(
        f"{file} has the columns {sorted(schema.names)}: one must be named image, and hold bytes"
    )


def _can_be_image(kind: Any) -> bool:
    """Whether a type is of bytes, or of a struct with bytes."""
    import pyarrow.types as types

    if types.is_struct(kind):
        names = [kind.field(n).name for n in range(kind.num_fields)]
        return "bytes" in names and (
            _can_be_image(kind.field(names.index("bytes")).type)
            or types.is_null(kind.field(names.index("bytes")).type)
        )
    return types.is_binary(kind) or types.is_large_binary(kind) or "binary_view" in str(kind)


def _copy(
    shard: Opened,
    file: Path,
    schema: Schema,
    images: BinaryIO,
    left_out: LeftOut,
) -> Iterator[Row]:
    """Appends the images of a file to the copy."""
    for number, (image, label) in _values(shard, file, schema, left_out):
        name = f"{file.stem}/{number}"
        held = image if isinstance(image, dict) else {"bytes": image}
        data, path = held.get("bytes"), held.get("path")
        if not data:
            left_out.add(PATHS if path else NO_IMAGE, name)
        elif len(data) > MAX_BYTES:
            left_out.add(LARGE, name)
        else:
            offset = images.tell()
            images.write(data)
            name = f"{name}/{path}" if isinstance(path, str) and path else name
            yield Row(name, label, len(data), offset)


def _values(
    shard: Opened, file: Path, schema: Schema, left_out: LeftOut
) -> Iterator[tuple[int, tuple[Any, Any]]]:
    """The image and the label of each row, with its number; what is damaged is left out."""
    import pyarrow

    columns = [schema.image, schema.label] if schema.label else [schema.image]
    end = 0
    for group in range(shard.num_row_groups):
        number, end = end, end + shard.metadata.row_group(group).num_rows
        try:
            for batch in shard.iter_batches(ROWS, row_groups=[group], columns=columns):
                for row in batch.to_pylist():
                    yield number, (row[schema.image], row.get(schema.label))
                    number += 1
        except (OSError, pyarrow.ArrowException, UnicodeError) as error:
            if getattr(error, "errno", None):  # of the system, such as a full disk
                raise
            left_out.add(DAMAGED_ROWS, f"{file} from row {number}", end - number)


def _is_labelled(name: str, label: int | None, classes: Sequence[str], left_out: LeftOut) -> bool:
    """Whether a row of a labelled set has a label that is one."""
    if not classes or (label is not None and 0 <= label < len(classes)):
        return True
    left_out.add(UNLABELLED if label is None else OUTSIDE, name)
    return False


def _classes(
    values: Sequence[Any], schema: Schema, path: Path
) -> tuple[Sequence[int | None], tuple[str, ...]]:
    """The label of each row, and the class names; no names, if the rows have no labels."""
    found = [_plain(value, schema, path) for value in values]
    known = [value for value in found if value is not None]
    if not known:
        if schema.label:
            warn(f"the images of {path} are unlabelled: no row has a value in {schema.label!r}")
        return [None] * len(found), ()
    if schema.names and all(isinstance(value, int) for value in known):
        return found, schema.names
    if all(isinstance(value, int) for value in known) and max(known) < MAX_NUMBER:
        return found, tuple(map(str, range(max(known) + 1)))
    texts = [None if value is None else str(value) for value in found]
    if are_ids([text for text in texts if text is not None]):
        warn(
            f"{schema.label!r} of {path} has nearly as many values as there are images, such as "
            f"{known[0]}: it is not taken for a class, and the images are unlabelled"
        )
        return [None] * len(found), ()
    classes = in_order(text for text in texts if text is not None)
    places = {name: label for label, name in enumerate(classes)}
    return [None if text is None else places[text] for text in texts], classes


def _plain(value: Any, schema: Schema, path: Path) -> int | str | None:
    """A label as a whole number or text; None for none: null, NaN, -1, empty.

    Raises UserError for what no class can be.
    """
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, str):
        return normal(value.strip()) or None
    if isinstance(value, float):
        if value != value:
            return None
        value = int(value) if value.is_integer() else value
    if value is None or (isinstance(value, int) and value < 0):
        return None
    if isinstance(value, int):
        return int(value)
    raise UserError(
        f"{schema.label!r} of {path} holds {str(value)[:80]!r}, where each image must have one "
        "class, a whole number or text: keep the one that counts, or leave the column out"
    )
