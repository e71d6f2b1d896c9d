"""The classes of images that no folder spells: a table of file names, or ImageNet's devkit."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.data.prepare.archives import open_files
from nepa_jax.data.prepare.classes import are_ids, in_order, normal
from nepa_jax.data.prepare.columns import LABEL_COLUMNS, NAME_COLUMNS, plain
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.listing import Listing, example_of
from nepa_jax.data.prepare.matching import (
    Parts,
    Rows,
    loose,
    loose_name,
    matched,
    path_parts,
    suffix_of,
)
from nepa_jax.data.prepare.members import File
from nepa_jax.data.prepare.tables import read_table

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"

IMAGENET_CLASSES = 1000
IMAGENET_TRAIN = 1_281_167
IMAGENET_VALIDATION_PER_CLASS = 50

SAMPLE = 1000  # rows, by which the column with the names is found
NO_LABEL = ("", "nan", "null", "\\n", "<na>", "#n/a")

UNLABELLED = "images that --labels has no class for"
UNUSED = "lines of --labels for images that are not there"
NULL = "lines of --labels without a class"


def by_labels(
    images: Sequence[File], labels: Path, source: Path, scratch: Path, left_out: LeftOut
) -> Listing:
    """The images with the classes that a file has for them.

    labels: a table with the paths or names of images and their classes (commas, tabs or spaces,
      with names of the columns or without; Kaggle's and Tiny ImageNet's among them), or
      ImageNet's devkit (ILSVRC2012_devkit_t12, as a folder or a .tar.gz) for the validation
      images.

    A line is for the image whose path ends in its path. `left_out` is told the images without a
    class and the classes without an image.

    Raises UserError if `labels` is neither, has two classes for an image, one line for two
    images, or no class for most of them.
    """
    rows = _read_rows(labels, images, scratch, left_out)
    found = matched(rows, images, source)
    if 2 * len(found) < len(images):
        missing = next(image.path for image in images if image.path not in found)
        raise UserError(
            f"--labels has no class for {len(images) - len(found)} of {len(images)} images of "
            f"{source}, such as {missing}: give the file that lists them, with their names or "
            "paths in one column"
        )
    for image in images:
        if image.path not in found:
            left_out.add(UNLABELLED, image.path)
    used = set(found.values())
    for row in rows:
        if row not in used:
            left_out.add(UNUSED, "/".join(row))
    classes = {path: rows[row] for path, row in found.items()}
    _check_classes(list(classes.values()), labels)
    names = in_order(classes.values())
    numbers = {name: label for label, name in enumerate(names)}
    examples = [
        example_of(image, numbers[name], f"{name}/")
        for image in images
        if (name := classes.get(image.path)) is not None
    ]
    return Listing(examples, names, left_out)


def _read_rows(labels: Path, images: Sequence[File], scratch: Path, left_out: LeftOut) -> Rows:
    if not (labels.is_file() or labels.is_dir()):
        raise UserError(
            f"--labels={labels} does not exist, or is no file: give a table of file names and "
            "classes, or the devkit"
        )
    if labels.is_dir() or labels.suffix in (".gz", ".tgz", ".tar", ".zip"):
        return _validation_rows(labels, scratch)
    table = read_table(labels, left_out)
    rows: dict[Parts, str] = {}
    doubled: dict[str, set[str]] = {}
    for name, label in _pairs(table, images, labels):
        if label is None:
            left_out.add(NULL, name)
        elif rows.setdefault(path_parts(name), label) != label:
            doubled.setdefault(name, {rows[path_parts(name)]}).add(label)
    if doubled:
        name, both = next(iter(doubled.items()))
        raise UserError(
            f"--labels={labels} has several classes for {len(doubled)} images, such as {name} "
            f"({', '.join(sorted(both))}): leave one line for each, with its path if several "
            "folders hold the name"
        )
    return rows


def _pairs(
    table: Sequence[Sequence[str]], images: Sequence[File], labels: Path
) -> Iterator[tuple[str, str | None]]:
    """The name and the class of each row; None, where it has no class."""
    names = _name_column(table, images)
    head = list(map(plain, table[0]))
    has_head = _is_head(table, head, names, images)
    column = _label_column(table, head if has_head else [], names, labels)
    rows = table[1:] if has_head else table
    values = [row[column] for row in rows]
    if has_head and head[column] == "predictionstring":  # a class and a box, for each object
        values = [value.partition(" ")[0] for value in values]
    for row, value in zip(rows, _class_names(values, labels), strict=True):
        yield row[names], value


def _name_column(table: Sequence[Sequence[str]], images: Sequence[File]) -> int:
    """The column that names the most images, with their suffixes or without."""
    exact = {path_parts(image.path)[-1:] for image in images}
    alike = set(map(loose, exact))
    rows = table[:: len(table) // SAMPLE + 1]

    def images_named(column: int) -> tuple[int, int]:
        named = {path_parts(row[column])[-1:] for row in rows}
        return len(named & exact), len(set(map(loose, named)) & alike)

    return max(range(len(table[0])), key=images_named)


def _is_head(
    table: Sequence[Sequence[str]], head: Sequence[str], names: int, images: Sequence[File]
) -> bool:
    """Whether the first row names the columns: by words for them, where an image would be named."""
    first = table[0][names]
    known = {loose_name(path_parts(image.path)) for image in images}
    if suffix_of(first) or loose_name(path_parts(first)) in known:
        return False
    words = {*NAME_COLUMNS, *LABEL_COLUMNS}
    return not words.isdisjoint(head) or all(suffix_of(row[names]) for row in table[1:])


def _label_column(
    table: Sequence[Sequence[str]], head: Sequence[str], names: int, labels: Path
) -> int:
    width = len(table[0])
    if known := [word for word in LABEL_COLUMNS if word in head and head.index(word) != names]:
        column = head.index(known[0])
        if width > 2:
            warn(f"classes are read from the column {table[0][column]!r} of {labels}")
        return column
    if width == 2:
        return 1 - names
    if width > 2 and not head and _are_boxes(table, names):
        return names + 1
    raise UserError(
        f"--labels={labels} has lines such as {' '.join(table[0])[:100]!r} (columns: {width}): write "
        "the file name and the class, or name the columns in the first line, as `image,label` does"
    )


def _are_boxes(table: Sequence[Sequence[str]], names: int) -> bool:
    """Whether a class follows the name, and only numbers follow it, as in Tiny ImageNet's."""
    after = [row[names + 1 :] for row in table]
    numbers = all(_is_number(cell) for cells in after for cell in cells[1:])
    return names == 0 and numbers and not any(_is_number(cells[0]) for cells in after)


def _class_names(values: Sequence[str], labels: Path) -> list[str | None]:
    """One form for each class: 3 for 3.0, composed characters; None for no class."""
    known = [value for value in values if value.lower() not in NO_LABEL]
    if known and all(_is_number(value) for value in known):
        if odd := [value for value in known if float(value) != round(float(value))]:
            raise UserError(
                f"--labels={labels} has the class {odd[0]}: give whole numbers or names, as "
                "classes are"
            )
        return [_number_name(value) for value in values]
    if lists := [value for value in known if value.startswith("[") and value.endswith("]")]:
        raise UserError(
            f"--labels={labels} has several classes for an image ({lists[0][:80]}): leave one "
            "for each, or prepare the images without --labels"
        )
    return [None if value.lower() in NO_LABEL else normal(value) for value in values]


def _number_name(value: str) -> str | None:
    if value.lower() in NO_LABEL or float(value) < 0:  # -1 is for no class
        return None
    return value if value.isdigit() else str(int(float(value)))


def _check_classes(values: Sequence[str], labels: Path) -> None:
    if are_ids(values):
        raise UserError(
            f"--labels={labels} has {len(set(values))} classes, such as {values[0]}, for "
            f"{len(values)} images: name the column with the classes `label` in the first line"
        )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d{1,2})?", text, re.IGNORECASE) is not None


def _validation_rows(path: Path, scratch: Path) -> Rows:
    """Line k of the ground truth is the devkit's own number of the class of image k."""
    with open_files(path, scratch) as files:
        found = {file.parts[-1]: file for file in files}
        if not {META, GROUND_TRUTH} <= found.keys():
            raise UserError(
                f"--labels={path} holds no {META} and {GROUND_TRUTH}: give the devkit, or a table"
            )
        wnids = _wnids(found[META].read(), path)
        numbers = found[GROUND_TRUTH].read().split()
    unknown = [number for number in numbers if not number.isdigit() or int(number) not in wnids]
    if unknown:
        raise UserError(
            f"{GROUND_TRUTH} of {path} has a class {unknown[0][:80]!r} that {META} has not"
        )
    return {
        (f"ILSVRC2012_val_{k:08d}.JPEG",): wnids[int(number)] for k, number in enumerate(numbers, 1)
    }


def _wnids(meta: bytes, path: Path) -> Mapping[int, str]:
    try:
        from scipy.io import loadmat  # slow to import, and needed here alone
    except ImportError as error:
        raise UserError(f"{META} of {path} needs scipy: pip install scipy") from error
    try:
        synsets = loadmat(BytesIO(meta), squeeze_me=True, struct_as_record=True)["synsets"]
        numbers, names = synsets["ILSVRC2012_ID"], synsets["WNID"]
        return {int(number): str(name) for number, name in zip(numbers, names, strict=True)}
    except Exception as error:  # of a damaged file scipy raises many kinds
        raise UserError(f"{META} of {path} is damaged: fetch the devkit again") from error


def imagenet_problems(listing: Listing, split: str) -> Sequence[str]:
    """What does not fit in a set that looks like ImageNet: nothing if it fits, or is another."""
    if not listing.examples or not _looks_like_imagenet(listing):
        return []
    if not listing.classes:
        return ["these are ImageNet's validation images without labels: give --labels"]
    problems = []
    if len(listing.classes) != IMAGENET_CLASSES:
        problems.append(
            f"{len(listing.classes)} classes have WordNet ids, and ImageNet has "
            f"{IMAGENET_CLASSES:,}: the labels are not those of ImageNet"
        )
    counts = Counter(example.label for example in listing.examples)
    if split.startswith("train") and len(listing.examples) != IMAGENET_TRAIN:
        problems.append(f"{len(listing.examples):,} images; ImageNet has {IMAGENET_TRAIN:,}")
    if split.startswith("val") and set(counts.values()) != {IMAGENET_VALIDATION_PER_CLASS}:
        problems.append(
            f"{min(counts.values())} to {max(counts.values())} images per class; ImageNet's "
            f"validation set has {IMAGENET_VALIDATION_PER_CLASS}"
        )
    return problems


def _looks_like_imagenet(listing: Listing) -> bool:
    if listing.classes:
        return all(len(c) == 9 and c[0] == "n" and c[1:].isdigit() for c in listing.classes)
    return listing.examples[0].name.startswith("ILSVRC2012_val_")
