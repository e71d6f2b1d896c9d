"""Hugging Face parquet files: images as {bytes, path} or bytes and, unless unlabelled, classes."""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nepa_jax.base.text import parse_json
from nepa_jax.data.classes import are_ids, in_order, normal
from nepa_jax.data.columns import IMAGE_COLUMNS, LABEL_COLUMNS, first_of, plain
from nepa_jax.data.left_out import LeftOut
from nepa_jax.data.listing import IMAGE_SUFFIXES, LARGE, MAX_BYTES, Example, Listing
from nepa_jax.data.progress import progress, warn
from nepa_jax.data.splits import same_split, split_of, splits_of
from nepa_jax.errors import UserError, in_short

if TYPE_CHECKING:
    import pyarrow.parquet

SUFFIXES = (".parquet", ".parq", ".pq")
MAGIC = b"PAR1"
ROWS = 64  # decoded at a time
LOOKED_AT = 4  # parquet files, to see whether they have images
MAX_NUMBER = 100_000  # of a class; larger ones are names
# train-00000-of-00002, train-00000-of-00002-0123456789abcdef, train_0, 0000, part-0
SHARD = re.compile(r"(?:(.*?)[-_.])?(\d+)(?:-of-(\d+))?(?:-[0-9a-f]{8,})?", re.IGNORECASE)
# Folders that say nothing of what is in them; any other is a subset (a "config").
NEUTRAL = frozenset(("", "data", "dataset", "parquet", "parquets", "refs", "convert"))

UNNAMED = "parquet files that are named after no split, beside those that are"
DAMAGED_FILES = "parquet files that are damaged (fetch them again)"
DAMAGED_ROWS = "rows in damaged parts of parquet files (fetch them again)"
OTHER_FILES = "parquet files with other columns, or other names of the classes"
MISSING = "parquet files that are missing (fetch them)"
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


@dataclass(frozen=True)
class Part:
    """A file, and what its path says: the subset, the split, and which shard of how many."""

    file: Path
    subset: str
    split: str | None
    shard: int | None
    of: int | None = field(default=None)


def is_parquet(path: Path) -> bool:
    """Whether `path` is a parquet file, or a folder of some: one that holds images only in them."""
    if path.is_file():
        with open(path, "rb") as file:
            return path.suffix.lower() in SUFFIXES or file.read(len(MAGIC)) == MAGIC
    files = _parquet_files(path)
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
    files = _files(path, split, left_out)
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


def _walk(root: Path) -> Iterator[Path]:
    """All files that are not hidden, each folder once."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _parquet_files(root: Path) -> list[Path]:
    return sorted(file for file in _walk(root) if file.suffix.lower() in SUFFIXES)


def _has_images(root: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in _walk(root))


def _holds_images(file: Path) -> bool:
    """Whether a file has images; not, if it cannot be known."""
    try:
        _schema(_open(file), file)
    except (UserError, ValueError):
        return False
    return True


def _files(path: Path, split: str, left_out: LeftOut) -> Sequence[Path]:
    """The files of a split, in order."""
    if path.is_file():
        return [path]
    files = _parquet_files(path)
    named_after = splits_of({_shard(file)[0] for file in files})
    parts = [_part(file, path, named_after) for file in files]
    named = [part for part in parts if part.split]
    chosen = named or parts
    for part in parts if named else ():
        if not part.split:
            left_out.add(UNNAMED, str(part.file))
    splits = sorted({part.split for part in named if part.split})
    if splits:
        wanted = same_split(splits, split)
        if len(wanted) != 1:
            words = "more than one set of files for" if wanted else "no"
            raise UserError(f"{path} has {words} split {split!r}: choose --split from {splits}")
        if wanted != [split]:
            warn(f"split {split!r} is read from {wanted[0]}")
        chosen = [part for part in named if part.split == wanted[0]]
    _check_subsets(chosen, path)
    _check_shards(chosen, path, left_out)
    return [part.file for part in chosen]


def _part(file: Path, root: Path, named_after: Collection[str]) -> Part:
    """`named_after` has the words that mean a split, among those that files begin with."""
    folders = list(file.relative_to(root).parts[:-1])
    prefix, number, total = _shard(file)
    if prefix in named_after or (prefix and total):  # any word, where it is of the hub's form
        return Part(file, _subset(folders), prefix, number, total)
    inner = next((name for name in reversed(folders) if split_of(name)), None)
    if inner:
        folders.remove(inner)
    return Part(file, _subset(folders), inner, number, total)


def _shard(file: Path) -> tuple[str, int | None, int | None]:
    """What a file's name begins with, its number and how many there are."""
    stem = file.name[: -len(file.suffix)]
    found = SHARD.fullmatch(stem)
    if not found:
        return stem, None, None
    prefix, number, total = found.groups()
    return prefix or "", int(number), int(total) if total else None


def _subset(folders: Sequence[str]) -> str:
    return "/".join(name for name in folders if name.lower() not in NEUTRAL)


def _check_subsets(parts: Sequence[Part], path: Path) -> None:
    if len(subsets := sorted({part.subset for part in parts})) > 1:
        names = ", ".join(name or "files in no folder" for name in subsets)
        raise UserError(
            f"{path} has {len(subsets)} subsets side by side ({names}): give one of them as the "
            "source, or put the files into one folder if they are one"
        )


def _check_shards(parts: Sequence[Part], path: Path, left_out: LeftOut) -> None:
    """Raises UserError if files of two uploads lie beside each other; tells what is missing."""
    totals = {part.of for part in parts}
    if len(totals) > 1:
        names = ", ".join(sorted(part.file.name for part in parts)[:3])
        raise UserError(
            f"{path} has files of several uploads of a split ({names}, ...): leave those of one"
        )
    shards = {part.shard for part in parts}
    for total in totals - {None}:
        if (number := total - len(shards)) > 0:
            first = next(shard for shard in range(total) if shard not in shards)
            left_out.add(MISSING, f"{parts[0].split}-{first:05d}-of-{total:05d}", number)


def _open(file: Path) -> "pyarrow.parquet.ParquetFile":
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


def _open_all(
    files: Sequence[Path], left_out: LeftOut
) -> Mapping[Path, "pyarrow.parquet.ParquetFile"]:
    """The files that can be opened and are like the first of them."""
    shards: dict[Path, pyarrow.parquet.ParquetFile] = {}
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


def _schema(shard: "pyarrow.parquet.ParquetFile", file: Path) -> Schema:
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


def _tell_label(schema: Schema, shard: "pyarrow.parquet.ParquetFile", path: Path) -> None:
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


def _image_column(schema: "pyarrow.Schema", features: Mapping[str, Any], file: Path) -> str:
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
    shard: "pyarrow.parquet.ParquetFile",
    file: Path,
    schema: Schema,
    images: BinaryIO,
    left_out: LeftOut,
) -> Iterator[Row]:
    """Appends the images of a file to the copy."""
    for number, (image, label) in _values(shard, file, schema, left_out):
        name = f"{file.stem}/{number}"
        data, path = (
            (image.get("bytes"), image.get("path"))
            if isinstance(image, dict)
            else (
                image,
                None,
            )
        )
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
    shard: "pyarrow.parquet.ParquetFile", file: Path, schema: Schema, left_out: LeftOut
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
