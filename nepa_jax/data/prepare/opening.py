"""What a source is, and the examples that it holds: a tree of files, parquet files, or a set of ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import progress, warn
from nepa_jax.base.text import read_json
from nepa_jax.base.threads import ordered_map
from nepa_jax.data.batches import BadRecord
from nepa_jax.data.manifest import FORMAT, MANIFEST
from nepa_jax.data.masks import MaskRule
from nepa_jax.data.prepare.archives import open_files
from nepa_jax.data.prepare.labels import by_labels
from nepa_jax.data.prepare.left_out import LeftOut
from nepa_jax.data.prepare.listing import Example, Listing, by_folder, by_sample, find_images
from nepa_jax.data.prepare.pairs import NAMES_OF_CLASSES, by_masks, mask_tree
from nepa_jax.data.prepare.parquet import is_parquet, open_parquet
from nepa_jax.data.prepare.samples import class_files
from nepa_jax.data.prepare.tree import choose_split
from nepa_jax.data.records import RecordError, RecordSet, open_dataset


def source_path(source: str, out: str) -> Path:
    """Where the source is. Raises UserError if it is not on this machine, or around `out`."""
    if "://" in source:
        raise UserError(
            f"source {source} is not on this machine: download it (`curl -LO` or the tool of the "
            "bucket) and give the file or folder"
        )
    path = Path(source)
    if not source or not path.exists():
        raise UserError(
            f"source {source or '(an empty name)'} does not exist: give a folder, a .zip, a .tar "
            "or a .parquet"
        )
    if not out:
        raise UserError("--out is empty: give a folder for the shards")
    if "://" not in out and Path(out).resolve().is_relative_to(path.resolve()):
        raise UserError(
            f"--out={out} is the source or inside of it ({source}): choose a folder beside it"
        )
    return path


@contextmanager
def open_listing(
    path: Path, split: str, unfinished: Path, num_threads: int,
    labels: str | None = None, masks: MaskRule | None = None,
) -> Iterator[Listing]:  # fmt: skip
    """What `path` holds, whatever it is; its examples can be read until the exit.

    `unfinished` is a folder for what must be unpacked. For `labels`,
    `masks` and errors see `prepare`.
    """
    prepared = _is_prepared(path)
    if labels is not None and (prepared or is_parquet(path)):
        raise UserError(
            f"--labels={labels} is for images in files, and {path} has labels: leave it out"
        )
    if prepared or is_parquet(path):
        _require_no_rule(masks, path)
    if prepared:
        yield _prepared_listing(open_dataset(path, split), num_threads)
    elif is_parquet(path):
        with open_parquet(path, split, unfinished) as listing:
            yield listing
    else:
        left_out = LeftOut()
        with open_files(path, unfinished, left_out) as files:
            others = [file for file in files if file.parts[-1] not in NAMES_OF_CLASSES]
            images = find_images(others, path, left_out)
            tree = None if labels else mask_tree(files, images, path)
            if tree is not None:
                yield by_masks(tree, images, split, masks, left_out)
                return
            _require_no_rule(masks, path)
            images = choose_split(images, split, path, left_out)
            if labels is not None:
                yield by_labels(images, Path(labels), path, unfinished, left_out)
            elif class_of := class_files(files, images):
                yield by_sample(images, class_of, left_out)
            else:
                yield by_folder(images, path, left_out)


def _require_no_rule(masks: MaskRule | None, path: Path) -> None:
    if masks is not None:
        raise UserError(
            f"--masks is for images/SPLIT with masks in annotations/SPLIT, and {path} has no such "
            "folders: leave it out"
        )


def _is_prepared(path: Path) -> bool:
    """Whether it is a set of ours: other programs write a dataset.json beside images, too."""
    if not (path / MANIFEST).is_file():
        return False
    try:
        return read_json(path / MANIFEST, dict).get("format") == FORMAT
    except (OSError, ValueError):  # a damaged one of ours is known by its shards
        return any(path.glob("*.array_record"))


def _prepared_listing(records: RecordSet, num_threads: int) -> Listing:
    """The records of a set as examples; their names are known once all have been read.

    Those that cannot be read are left out, and told.
    """

    def example(index: int) -> Example | BadRecord:
        try:
            record = records[index]
        except RecordError as error:
            return BadRecord(index, "", str(error))
        sizes = len(record.image), len(record.mask or b"")
        mask = None if record.mask is None else lambda size: records[index].mask
        read = lambda: records[index].image  # noqa: E731
        return Example(record.name, record.label, sizes[0], read, mask, sizes[1])

    found = ordered_map(example, range(len(records)), num_threads)
    found = list(progress(found, len(records), f"reading {records.split}"))
    examples = [item for item in found if isinstance(item, Example)]
    if bad := [item for item in found if isinstance(item, BadRecord)]:
        warn(f"{len(bad)} of {len(records)} records are left out, such as {bad[0]}")
    named = records.labelled or records.masks is not None
    return Listing(examples, records.classes if named else (), masks=records.masks)
