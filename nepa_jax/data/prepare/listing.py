"""What is to be prepared: the examples of one split, and how a tree of files spells them."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.data.masks import MaskRule
from nepa_jax.data.prepare.classes import normal, told_forms
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.members import File
from nepa_jax.data.prepare.samples import by_class_file
from nepa_jax.data.prepare.tree import in_classes

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".gif", ".webp", ".tif"),
        *(".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
OTHER_IMAGES = frozenset(
    (
        *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".psd", ".tga"),
        *(".ico", ".exr", ".hdr", ".dds", ".pcx", ".eps", ".raw", ".dng", ".cr2", ".cr3", ".nef"),
        *(".arw", ".orf", ".rw2", ".raf", ".dcm", ".fits", ".nii", ".npy"),
    )
)
ARCHIVES = frozenset((".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"))

# What operating systems, storage boxes and programs put beside the files of others.
SYSTEM_NAMES = frozenset(
    (
        *("$recycle.bin", "recycler", "recycled", "system volume information", "found.000"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found", ".directory", ".trash"),
        *("__macosx", ".ds_store", ".appledouble", ".spotlight-v100", ".fseventsd", "icon\r"),
        *(".trashes", "network trash folder", "temporary items", ".temporaryitems"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@sharesnap"),
        *("@tmp", "@database", "@__thumb", ".@__thumb", ".snapshot", ".thumbnails"),
        *("__pycache__", ".ipynb_checkpoints", ".git"),
    )
)
SYSTEM_PREFIXES = ("._", ".trash-", ".nfs", ".fuse_hidden", "~$")

MAX_BYTES = 256 << 20

SYSTEM = "files that systems put there"
HIDDEN = "hidden files (a name begins with a dot)"
LARGE = f"images above {MAX_BYTES >> 20} MiB"
UNSUPPORTED = "images in a format that is not read (convert them to JPEG or PNG)"
PACKED = "archives inside of the source (unpack them, or give each as the source)"
NO_IMAGES = "files that are no images by their names"


@dataclass(frozen=True)
class Example:
    """One example to be written. `read` may raise any error; it may run in any thread.

    read_mask: the encoded mask of an image of a (height, width), and as `read`; None without masks.
    """

    name: str
    label: int | None
    size: int
    read: Callable[[], bytes]
    read_mask: Callable[[tuple[int, int]], bytes] | None = None
    mask_size: int = 0


@dataclass(frozen=True)
class Listing:
    """The examples of one split, and the class names by label: none if it is unlabelled.

    masks: what their values mean; None if there are none. Else the classes are those of pixels.
    """

    examples: Sequence[Example]
    classes: tuple[str, ...]
    left_out: LeftOut = field(default_factory=LeftOut)
    masks: MaskRule | None = None

    @property
    def labelled(self) -> bool:
        """Whether every image has a label."""
        return bool(self.classes) and self.masks is None


def example_of(file: File, label: int | None, folder: str = "") -> Example:
    return Example(f"{folder}{'/'.join(file.parts)}", label, file.size, file.read)


def find_images(files: Iterable[File], source: Path, left_out: LeftOut) -> list[File]:
    """The images by their names; the rest is told to `left_out`.

    Raises UserError if there are none.
    """
    images = []
    for file in files:
        if kind := _why_not(file):
            left_out.add(kind, "/".join(file.parts))
        else:
            images.append(file)
    if not images:
        found = "; ".join(left_out.lines()) or "it is empty"
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"no images in {source}: expected names ending in {suffixes} ({found})")
    return images


def by_folder(images: Sequence[File], source: Path, left_out: LeftOut) -> Listing:
    """The images of a split with their folders as classes; unlabelled, if they are in none.

    Raises UserError if more images are outside of the folders than in them.
    """
    images = in_classes(images, source, left_out)
    folders = {file.parts[0] for file in images if len(file.parts) > 1}
    for line in told_forms(folders):
        warn(line)
    classes = sorted(set(map(normal, folders)))
    labels = {name: label for label, name in enumerate(classes)}
    examples = [example_of(file, labels.get(normal(file.parts[0]))) for file in images]
    return Listing(examples, tuple(classes), left_out)


def by_sample(images: Sequence[File], class_of: Mapping[str, File], left_out: LeftOut) -> Listing:
    """The images of a split with the classes in the files beside them."""
    labelled, classes = by_class_file(images, class_of, left_out)
    return Listing([example_of(file, label) for file, label in labelled], classes, left_out)


def _why_not(file: File) -> str | None:
    """The kind of what is left out, that a file is of; None for an image."""
    suffix = os.path.splitext(file.parts[-1])[1].lower()
    if any(_is_system(part.lower()) for part in file.parts):
        return SYSTEM
    if any(part.startswith(".") for part in file.parts):
        return HIDDEN
    if suffix in IMAGE_SUFFIXES:
        return LARGE if file.size > MAX_BYTES else None
    if suffix in OTHER_IMAGES:
        return UNSUPPORTED
    return PACKED if suffix in ARCHIVES else NO_IMAGES


def _is_system(name: str) -> bool:
    return name in SYSTEM_NAMES or name.startswith(SYSTEM_PREFIXES)
