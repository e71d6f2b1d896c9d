"""The classes of images that no folder spells: a two-column file, or ImageNet's devkit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from nepa_jax.data.archives import File, open_files
from nepa_jax.data.listing import Listing
from nepa_jax.errors import UserError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"

IMAGENET_CLASSES = 1000
IMAGENET_TRAIN = 1_281_167
IMAGENET_VALIDATION_PER_CLASS = 50


def read_labels(path: Path, scratch: Path) -> Mapping[str, str]:
    """The class name of each file name.

    `path` is a text file with a file name and a class in each line, or ImageNet's devkit
    (ILSVRC2012_devkit_t12, as a folder or a .tar.gz) for the validation images.

    Raises UserError if it is neither.
    """
    if not path.exists():
        raise UserError(f"--labels={path} does not exist: give a two-column file or the devkit")
    if path.is_file() and path.suffix in ("", ".txt", ".csv", ".tsv"):
        return _two_columns(path)
    with open_files(path, scratch) as files:
        found = {file.parts[-1]: file for file in files}
        if not {META, GROUND_TRUTH} <= found.keys():
            raise UserError(f"--labels={path} holds no {META} and {GROUND_TRUTH}: give the devkit")
        return _validation_labels(found[META], found[GROUND_TRUTH], path)


def _two_columns(path: Path) -> Mapping[str, str]:
    lines = path.read_text().replace(",", " ").splitlines()
    rows = [line.split() for line in lines if line.strip()]
    wrong = [row for row in rows if len(row) != 2]
    if wrong or not rows:
        text = " ".join(wrong[0]) if wrong else "nothing"
        raise UserError(f"--labels={path} has a line {text!r}: write `FILE_NAME CLASS` in each")
    return {Path(name).name: label for name, label in rows}


def _validation_labels(meta: File, truth: File, path: Path) -> Mapping[str, str]:
    """Line k of the ground truth is the devkit's own number of the class of image k."""
    wnids = _wnids(meta.read())
    numbers = truth.read().split()
    unknown = [number for number in numbers if int(number) not in wnids]
    if unknown:
        raise UserError(f"{GROUND_TRUTH} of {path} has a class {unknown[0]} that {META} has not")
    return {
        f"ILSVRC2012_val_{k:08d}.JPEG": wnids[int(number)] for k, number in enumerate(numbers, 1)
    }


def _wnids(meta: bytes) -> Mapping[int, str]:
    from scipy.io import loadmat  # slow to import, and needed here alone

    synsets = loadmat(BytesIO(meta), squeeze_me=True, struct_as_record=True)["synsets"]
    numbers, names = synsets["ILSVRC2012_ID"], synsets["WNID"]
    return {int(number): str(name) for number, name in zip(numbers, names, strict=True)}


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
