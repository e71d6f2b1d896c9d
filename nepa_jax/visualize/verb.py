"""The verb ``nepa-jax visualize``: pictures of any weights on any images. Loads nothing until it runs."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nepa_jax.base.errors import UserError, require_folder
from nepa_jax.base.text import printable
from nepa_jax.base.verbs import group, option, verb, whole

if TYPE_CHECKING:
    from nepa_jax.data.records import RecordSet
    from nepa_jax.loading import Loaded
    from nepa_jax.visualize.gallery import Gallery
    from nepa_jax.visualize.images import Cut

# A picture more is a line here, and one of `gallery.KINDS`.
PICTURES = {
    "reconstructions": "what MAE makes of what is left of an image",
    "attention": "where a patch looks, in each layer and head",
    "similarity": "what NEPA's predictions resemble",
    "pca": "the patches' three main components as colours, at each layer",
    "neighbors": "the images of the set that are most alike",
}
# Of a data set, without --split: images that were not trained on first.
SPLITS = ("validation", "val", "test")


def add_verbs(verbs: Any) -> None:
    """Adds ``visualize``."""
    verb(
        verbs, "visualize", "pictures of what a model does with images, as PNG and PDF",
        "W --data=data/photos --out=pictures",
        option("path", help="workdir, export, or weights of others"),
        option("--data", help="a prepared data set: the images, and where neighbours are looked for"),
        option("--images", nargs="+", help="show these: files; or one folder, archive or prepared set"),
        option("--split", help="of the data set (default: validation or test, if it has one)"),
        option("--out", help="folder for the pictures (default: W/pictures)"),
        option("--what", type=chosen_pictures,
               help=f"some, with commas: {', '.join(PICTURES)} (default: all that the weights can give)"),
        _IMAGES, _PICTURES, _WEIGHTS,
    )(visualize)  # fmt: skip


_IMAGES = group(
    "the images",
    "cut as in evaluation, unless",
    option("--num-images", type=whole(1, 64), default=6, help="how many are shown (default: 6)"),
    option(
        "--image-size", type=whole(1, 16_384), help="of the side, px (default: the model's own)"
    ),
    option(
        "--whole", action="store_true", help="each with its own aspect, the shorter side that size"
    ),
)


def chosen_pictures(text: str) -> tuple[str, ...]:
    """Raises UserError for a name that is none."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in PICTURES:
            raise UserError(
                f"--what={text}: {name!r} is unknown; choose from {', '.join(PICTURES)}"
            )
    return names


def mask_ratios(text: str) -> tuple[float, ...]:
    """Raises UserError unless these are shares between 0 and 1."""
    try:
        ratios = tuple(float(part) for part in text.split(","))
    except ValueError:
        ratios = ()
    if not ratios or not all(0 < ratio < 1 for ratio in ratios):
        raise UserError(f"--mask-ratios={text}: give shares above 0 and below 1, such as 0.75,0.95")
    return ratios


_PICTURES = group(
    "the pictures",
    "what is drawn of all there is",
    option("--layer", type=int, help="0: the embedding; -1: the last (default: all; neighbors: one)"),
    option("--head", type=whole(0, 2**16), help="of the attention, from 0 (default: all, and their mean)"),
    option("--patch", type=whole(0, 2**31),
           help="in raster order from 0, for attention and similarity (default: some with much on them)"),
    option("--mask-ratios", type=mask_ratios, default="0.75,0.85,0.95", help="default: %(default)s"),
    option("--seed", type=whole(0, 2**31), default=0, help="of the masks"),
    option("--among", type=whole(2, 2**31), default=5000,
           help="neighbors: of the first so many images of the split (default: 5,000)"),
)  # fmt: skip
_WEIGHTS = group(
    "the weights",
    "which of them",
    option("--ema", action="store_true", help="the averaged weights"),
    option(
        "--step", type=whole(0, 2**31), help="of the checkpoint (default: the newest sound one)"
    ),
    option("--objective", help="the module of one's own that the weights belong to"),
)


def visualize(args: Namespace) -> None:
    """Draws what is asked for, or all that the weights can give, and names what they cannot."""
    if args.data is None and args.images is None:
        raise UserError("--data is missing; give a prepared data set, or files by --images")
    gallery, folder = opened(args)
    from nepa_jax.visualize import style
    from nepa_jax.visualize.gallery import KINDS

    reasons = {name: KINDS[name].why_not(gallery) for name in args.what or PICTURES}
    left_out = {name: why for name, why in reasons.items() if why}
    if left_out and (args.what or len(left_out) == len(reasons)):
        raise UserError(*(f"{name} cannot be drawn: {why}" for name, why in left_out.items()))
    for line in told(args.path, gallery):
        print(line, flush=True)
    stems = []
    for name, why_not in reasons.items():
        if why_not:
            print(f"left out: {name}: {why_not}", flush=True)
            continue
        for stem, figure in KINDS[name].draw(gallery):
            for suffix in ("png", "pdf"):
                style.save(figure, folder / f"{stem}.{suffix}")
            stems.append(stem)
            print(f"drawn: {stem}: {PICTURES[name]}", flush=True)
    print(f"done: {', '.join(stems)} in {folder}, each as .png and .pdf")
    print("next: nepa-jax visualize --help   tells how to choose layer, head, patch, mask ratios")


def opened(args: Namespace) -> "tuple[Gallery, Path]":
    """Weights and images, and the folder for the pictures; all that can be wrong is found here."""
    from nepa_jax.evals.results import folder_of
    from nepa_jax.loading import load
    from nepa_jax.visualize import gallery, images

    if args.out is not None:
        require_folder(args.out, "--out")
    loaded = load(args.path, ema=args.ema, step=args.step, objective=args.objective)
    how, records = cut_of(args, loaded), records_of(args)
    if args.images is None:
        shown = images.of_records(records, how, args.num_images)
    else:
        shown = images.of_files(args.images, args.split or "train", how, args.num_images)
    choice = gallery.Choice(
        args.layer, args.head, args.patch, args.mask_ratios, args.seed, args.among
    )
    made = gallery.checked(gallery.Gallery(loaded, shown, how, choice, records))
    return made, folder_of(args.path, "pictures", args.out)


def cut_of(args: Namespace, loaded: "Loaded") -> "Cut":
    """Raises UserError if the size is not one of whole patches."""
    from nepa_jax.config import evaluation_data
    from nepa_jax.visualize.images import Cut

    data, patch = evaluation_data(loaded.config), loaded.config.model.patch_size
    if (side := args.image_size) is not None:
        if side % patch:
            raise UserError(
                f"--image-size={side}: must be a multiple of the patch side, {patch}; "
                f"try {max(1, side // patch) * patch}"
            )
        data = replace(data, image_size=(side, side))
    return Cut(data, patch, args.whole)


def records_of(args: Namespace) -> "RecordSet | None":
    """The split of the data set that is shown or looked in; None without a set."""
    if args.data is None:
        return None
    from nepa_jax.data.manifest import read_manifest
    from nepa_jax.data.records import open_dataset

    there = read_manifest(args.data)["splits"]
    held_out = (name for name in SPLITS if name in there)
    return open_dataset(args.data, args.split or next(held_out, min(there, default="train")))


def told(path: str, gallery: "Gallery") -> Iterator[str]:
    """What is drawn of what."""
    loaded, records = gallery.loaded, gallery.records
    step = "" if loaded.step is None else f", step {loaded.step:,}"
    method = loaded.config.objective.name.rpartition(".")[2]
    source = ""
    if gallery.images[0].record is not None and records is not None:
        source = f" of {records.path}, split {records.split}"
    yield f"pictures of {path} ({method}{step}) on {len(gallery.images)} images{source}:"
    for number, image in enumerate(gallery.images, 1):
        height, width = image.pixels.shape[:2]
        label = f", {image.label}" if image.label else ""
        yield printable(f"  {number}  {image.name}{label}: {height} x {width} px")
