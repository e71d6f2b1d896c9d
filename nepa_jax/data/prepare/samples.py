"""Labels in files beside the images, as WebDataset has them: 0001.jpg and 0001.cls."""

from collections.abc import Mapping, Sequence

from nepa_jax.base.progress import progress
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.members import File

SUFFIX = ".cls"
MAX_BYTES = 1024  # of a class
MAX_NUMBER = 100_000  # of a class; larger ones are names

UNLABELLED = "images without a class in a .cls file beside them"
PARTS = "further images of a sample (two suffixes, such as .seg.png)"


def class_files(files: Sequence[File], images: Sequence[File]) -> Mapping[str, File]:
    """The files with the class of a sample, by the sample; none, unless most images have one."""
    found = {_sample(file): file for file in files if file.parts[-1].endswith(SUFFIX)}
    number = sum(_sample(image) in found for image in images) if found else 0
    return found if 2 * number > len(images) else {}


def by_class_file(
    images: Sequence[File], class_of: Mapping[str, File], left_out: LeftOut
) -> tuple[Sequence[tuple[File, int]], tuple[str, ...]]:
    """The images with their labels, and the class names.

    Where all classes are numbers, these are the labels; else a label is the index in the sorted
    class names.
    """
    named = []
    for image in progress(images, len(images), "reading the labels"):
        name = _class(class_of.get(_sample(image)))
        if name is None or image.parts[-1].count(".") > 1:
            left_out.add(UNLABELLED if name is None else PARTS, image.path)
        else:
            named.append((image, name))
    names = {name for _, name in named}
    if all(name.isdigit() and int(name) < MAX_NUMBER for name in names):
        return [(image, int(name)) for image, name in named], _numbers(names)
    classes = tuple(sorted(names))
    labels = {name: label for label, name in enumerate(classes)}
    return [(image, labels[name]) for image, name in named], classes


def _numbers(names: set[str]) -> tuple[str, ...]:
    return tuple(map(str, range(max(map(int, names), default=-1) + 1)))


def _class(file: File | None) -> str | None:
    if file is None or file.size > MAX_BYTES:
        return None
    try:
        return file.read().decode().strip() or None
    except Exception:  # whatever the disk or the archive has wrong, or no UTF-8
        return None


def _sample(file: File) -> str:
    """A sample's name ends before the first dot of its last part."""
    folder, slash, name = file.path.rpartition("/")
    return folder + slash + name.partition(".")[0]
