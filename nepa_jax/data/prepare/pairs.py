"""Images with class masks beside them, in the folders of ADE20K: images/SPLIT, annotations/SPLIT."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import progress, warn
from nepa_jax.base.threads import ordered_map
from nepa_jax.data.decode import DecodeError
from nepa_jax.data.masks import IGNORED, MAX_CLASSES, MaskRule, class_mask, stored_values
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.listing import Example, Listing
from nepa_jax.data.prepare.members import File
from nepa_jax.data.prepare.tree import choose_split

IMAGES, ANNOTATIONS = "images", "annotations"
CLASSES, ADE20K_CLASSES = NAMES_OF_CLASSES = ("classes.txt", "objectInfo150.txt")
MAX_STRAYS = 0.01  # of the masks may have values of no class, and are left out

WITHOUT_MASK = "images without a mask"
WITHOUT_IMAGE = "masks without an image"

Parts = tuple[str, ...]


@dataclass(frozen=True)
class Tree:
    """The folder that holds images/ and annotations/, and its files."""

    root: Parts
    files: Sequence[File]
    source: Path

    def inside(self, folder: str) -> list[File]:
        """The files below one of its folders, with their parts from there on."""
        place = (*self.root, folder)
        found = [file for file in self.files if file.parts[: len(place)] == place]
        return [replace(file, parts=file.parts[len(place) :]) for file in found]

    def text(self, name: str) -> str | None:
        """One of its own files; None if it is not there."""
        found = [file for file in self.files if file.parts == (*self.root, name)]
        return found[0].read().decode("utf-8-sig", "replace") if found else None


def parse_masks(text: str | None) -> MaskRule | None:
    """Reads "ignore=11" or "reduce_zero_label=true" or both; None for None.

    Raises UserError for anything else.
    """
    if text is None:
        return None
    found: dict[str, int | bool] = {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        if key == "ignore" and value.isdecimal() and len(value) < 4 and int(value) <= 255:
            found[key] = int(value)
        elif key == "reduce_zero_label" and value in ("true", "false"):
            found[key] = value == "true"
        else:
            raise UserError(
                f"--masks={text}: write ignore=VALUE (0 to 255), reduce_zero_label=true, or both "
                "with a comma between"
            )
    return MaskRule(**found)


def mask_tree(files: Sequence[File], images: Sequence[File], source: Path) -> Tree | None:
    """The tree of a source that has masks; None if it has none: folders of classes, say.

    images: those of the files that are images.
    """
    roots = {
        kind: {file.parts[: file.parts.index(kind)] for file in images if kind in file.parts[:-1]}
        for kind in (IMAGES, ANNOTATIONS)
    }
    shared = sorted(roots[IMAGES] & roots[ANNOTATIONS], key=len)
    if not shared:
        return None
    tree = Tree(shared[0], files, source)
    pictures, masks = ({_key(file) for file in tree.inside(k)} for k in (IMAGES, ANNOTATIONS))
    return tree if 2 * len(pictures & masks) > len(pictures) else None


def by_masks(
    tree: Tree, images: Sequence[File], split: str, rule: MaskRule | None, left_out: LeftOut
) -> Listing:
    """The images of a split with their masks.

    Class names are the lines of classes.txt, or those of ADE20K's objectInfo150.txt (then 0 is no
    class); without either the classes are numbered, up to the largest value.

    Raises UserError if no image has a mask, or the masks have values of no class.
    """
    pairs = _pairs(Tree(tree.root, images, tree.source), split, left_out)
    if rule is None and tree.text(CLASSES) is None and tree.text(ADE20K_CLASSES) is not None:
        warn(
            f"{ADE20K_CLASSES} counts from 1: in the masks 0 is no class, as reduce_zero_label says"
        )
        rule = MaskRule(reduce_zero_label=True)
    rule = rule or MaskRule()
    counts = _masks_by_value([mask for _, mask in pairs])
    classes = _class_names(tree, rule) or _numbers(counts, rule)
    _check_values(counts, rule, len(classes), len(pairs), tree.source)
    examples = [_example(image, mask, rule, len(classes)) for image, mask in pairs]
    return Listing(examples, classes, left_out, rule)


def _key(file: File) -> Parts:
    """What an image and its mask have in common: folders, and the name without its suffix."""
    return (*file.parts[:-1], file.parts[-1].rpartition(".")[0])


def _pairs(tree: Tree, split: str, left_out: LeftOut) -> list[tuple[File, File]]:
    """The images of a split, each with its mask."""
    pictures, masks = tree.inside(IMAGES), tree.inside(ANNOTATIONS)
    of_masks = {file.path for file in masks}
    chosen = choose_split([*pictures, *masks], split, tree.source, left_out)
    mask_of = {_key(file): file for file in chosen if file.path in of_masks}
    image_of = {_key(file): file for file in chosen if file.path not in of_masks}
    for key in image_of.keys() - mask_of.keys():
        left_out.add(WITHOUT_MASK, image_of[key].path)
    for key in mask_of.keys() - image_of.keys():
        left_out.add(WITHOUT_IMAGE, mask_of[key].path)
    found = [(image_of[key], mask_of[key]) for key in image_of if key in mask_of]
    if not found:
        raise UserError(
            f"no image of {tree.source}, split {split!r}, has a mask: a mask has the name of its "
            f"image, in {ANNOTATIONS}/ where that is in {IMAGES}/"
        )
    return found


def _masks_by_value(masks: Sequence[File]) -> Mapping[int, int]:
    """How many masks have each stored value. Those that cannot be read have none."""

    def values(mask: File) -> np.ndarray:
        try:
            return np.unique(stored_values(mask.read()))
        except (DecodeError, OSError):  # told where the record is written
            return np.empty(0, np.uint8)

    found = progress(ordered_map(values, masks, 8), len(masks), "reading the masks")
    return Counter(int(value) for each in found for value in each)


def _class_names(tree: Tree, rule: MaskRule) -> tuple[str, ...]:
    """The names in the files of a tree, without that of the ignored value if it is the last."""
    if text := tree.text(CLASSES):
        names = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        rows = [line.split("\t") for line in (tree.text(ADE20K_CLASSES) or "").splitlines()]
        names = [row[-1].strip() for row in rows if row[0].strip().isdecimal()]
    if len(names) > MAX_CLASSES:
        raise UserError(f"{tree.source} names {len(names)} classes: masks hold {MAX_CLASSES}")
    shift = 1 if rule.reduce_zero_label else 0
    return tuple(names[:-1] if rule.ignore - shift == len(names) - 1 else names)


def _numbers(counts: Mapping[int, int], rule: MaskRule) -> tuple[str, ...]:
    table = rule.table()
    classes = [int(table[value]) for value in counts if table[value] != IGNORED]
    return tuple(map(str, range(max(classes, default=0) + 1)))


def _check_values(
    counts: Mapping[int, int], rule: MaskRule, num_classes: int, num_masks: int, source: Path
) -> None:
    """Raises UserError if values of no class are more than some masks' own fault."""
    table = rule.table()
    strays = {v: n for v, n in counts.items() if num_classes <= table[v] < IGNORED}
    if not strays:
        return
    value, number = max(strays.items(), key=lambda item: item[1])
    if number > MAX_STRAYS * num_masks or table[value] == num_classes:  # the first after the last
        raise UserError(
            f"{number:,} of {num_masks:,} masks of {source} have the value {value}, and there are "
            f"{num_classes} classes: give --masks=ignore={value} if it is none, --masks="
            f"reduce_zero_label=true if 0 is none and classes count from 1, or mend {CLASSES}"
        )


def _example(image: File, mask: File, rule: MaskRule, num_classes: int) -> Example:
    def read_mask(size: tuple[int, int]) -> bytes:
        data = mask.read()
        class_mask(data, rule, num_classes, size)
        return data

    return Example("/".join(image.parts), None, image.size, image.read, read_mask, mask.size)
