"""The verbs ``nepa-jax eval …``: opens an encoder, probes it and its untrained control, writes both.

A probe more is one line of :data:`PROBES`, and a module as :mod:`nepa_jax.evals.results` has it.
Loads nothing until a verb runs.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nepa_jax.base.errors import UserError
from nepa_jax.base.verbs import SEVERAL_HOSTS, Run, group, option, verb, whole

if TYPE_CHECKING:
    from nepa_jax.evals.pixels import Pixels
    from nepa_jax.evals.running import Draw
    from nepa_jax.evals.subject import Subject


@dataclass(frozen=True)
class Probe:
    """A line of help, and the keyword arguments of ``evaluate`` as options of the command line."""

    summary: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attention: str | None = None  # without --attention; None: as the encoder was trained
    # By --preset, without --image-size: px, rounded up to whole patches; else the encoder's own.
    image_size: Mapping[str, int] = field(default_factory=dict)
    pixels: bool = False  # may be asked of the images themselves, too


# Of probes whose heads are trained.
HEADS = {
    "epochs": dict(type=whole(1, 1_000_000), help="default: its paper's"),
    "batch_size": dict(
        type=whole(2, 2**24),
        help="images a step, on all devices (default: its paper's, or about as many as there are)",
    ),
    "augment": dict(
        choices=("crop", "none"),
        default="crop",
        help="crop: at random, and through the encoder in every epoch; none: of stored features",
    ),
}
PROBES = {
    "knn": Probe(
        "nearest neighbours, weighted: k = 20, T = 0.07, and all other settings beside it",
        pixels=True,
    ),
    "logreg": Probe(
        "logistic regression, its penalty chosen on a held-out tenth of the training images",
        {"protocol": dict(choices=("short", "dinov3"), default="short", help="grid and features")},
        pixels=True,
    ),
    "fewshot": Probe(
        "kNN and logistic regression of nested label budgets",
        {
            "budgets": dict(default="1,5,10,25,100", help="per cent of the training images"),
            "seed": dict(type=whole(0, 2**31), default=0, help="which images"),
        },
        pixels=True,
    ),
    "rank": Probe("RankMe, effective rank and alpha-ReQ of the features; needs no labels"),
    "spatial": Probe(
        "spatial structure of the patch tokens: LDS, CDS, SRSS (with masks), RMSC; needs no labels",
        {
            "preset": dict(choices=("release", "paper"), default="release", help="which distances"),
            "masks": dict(help="an .npz with `masks` [images, rows, columns], for SRSS"),
        },
    ),
    "segment": Probe(
        "semantic segmentation on patch tokens: a linear head, or the nearest patches' labels",
        {
            "preset": dict(
                choices=("dinov3", "capi-knn", "capi-logreg"), default="dinov3", help="the protocol"
            ),
            "iterations": dict(type=whole(1, 10_000_000), help="default: the protocol's"),
            "batch_size": dict(type=whole(1, 2**16), help="crops a step (default: the protocol's)"),
        },
        attention="bidirectional",
        image_size={"dinov3": 512, "capi-knn": 224, "capi-logreg": 224},
    ),
    "linear": Probe(
        "MAE's linear probe: batch norm, a linear map, LARS; every layer and rate in one program",
        HEADS | {"rates": dict(help="per 256 images, with commas (default: ten about 0.1)")},
    ),
    "attentive": Probe(
        "attentive probes on the patch tokens, every layer and rate in one program",
        {
            "kind": dict(
                choices=("efficient", "vjepa"),
                default="efficient",
                help="32 queries on raw tokens (arXiv 2506.10178), or V-JEPA's block",
            ),
            **HEADS,
            "rates": dict(help="per 256 images, with commas (default: a few about its paper's)"),
        },
    ),
}
# What `eval all` runs, with the options that differ: heads on stored features take minutes where
# images through the encoder in every epoch would take days.
STANDARD: dict[str, dict[str, Any]] = {
    "knn": {},
    "logreg": {},
    "linear": {"augment": "none"},
    "attentive": {"augment": "none"},
    "rank": {},
    "spatial": {},
}

SPLITS = (
    option("path", help="workdir, export, or weights of others"),
    option("--data", required=True, help="a prepared data set"),
    option("--split", default="train", help="what the probe learns from"),
    option("--test-split", default="validation"),
    option("--train-images", type=whole(1, 2**40), help="the first so many of it alone"),
    option("--no-untrained", action="store_true", help="without the control: half the time"),
    option("--out", help="folder for the results (default: W/eval)"),
    option("--json", action="store_true"),
)
PIXELS = option(
    "--pixels", action="store_true", help="the raw pixels beside it, of images of 32 px at most"
)
ENCODER = group(
    "the encoder",
    "where its features are taken, and of which weights",
    option("--layer", default="all", help="0: the embedding; -1: the last; default: all"),
    option("--pool", choices=("mean", "cls", "last"), default="mean"),
    option("--attention", choices=("causal", "bidirectional"), help="default: as it was trained"),
    option("--image-size", type=whole(1, 16_384), help="px; default: its own"),
    option("--ema", action="store_true", help="the averaged weights"),
    option(
        "--step", type=whole(0, 2**31), help="of the checkpoint (default: the newest sound one)"
    ),
    option("--objective", help="the module of one's own that the weights belong to"),
)


def add_verbs(verbs: Any, draw: "Draw") -> None:
    """Adds ``embed``, and ``eval`` with a verb below it for each probe and one for the standard set.

    Args:
        verbs: of the command line.
        draw: makes the pictures of what is found; rooms of features know no pictures.
    """
    verb(
        verbs, "embed", "write features of any images",
        "PHOTOS --checkpoint=W --layer=-1 --pool=mean --out=features.npz",
        option("images", nargs="+", help="files; or one folder, archive or prepared set"),
        option("--checkpoint", required=True, help="workdir, export, or weights of others"),
        option("--layer", type=int, default=-1, help="0: the embedding; -1: the last"),
        option("--pool", choices=("mean", "cls", "last", "none"), default="mean"),
        option("--split", default="train", help="of a source that has several"),
        option("--out", required=True, help="a file .npz"),
        option("--ema", action="store_true", help="the averaged weights"),
        option("--objective", help="the module of one's own that the weights belong to"),
    )(embed)  # fmt: skip
    probes = verbs.add_parser("eval", help="what frozen features are worth")
    below = probes.add_subparsers(metavar="PROBE")
    for name, probe in PROBES.items():
        own = [option(f"--{key.replace('_', '-')}", **how) for key, how in probe.options.items()]
        parts = (
            *SPLITS,
            *own,
            *([PIXELS] if probe.pixels else []),
            ENCODER,
            SEVERAL_HOSTS,
            lambda parser, name=name: parser.set_defaults(probe=name),
        )
        verb(below, name, probe.summary, "W --data=DIR --layer=all", *parts)(
            partial(together, work=partial(evaluate, draw=draw))
        )
    verb(
        below, "all", f"the standard set at every layer ({', '.join(STANDARD)}), and one page of it",
        "W --data=DIR", *SPLITS, ENCODER, SEVERAL_HOSTS,
    )(partial(together, work=partial(evaluate_all, draw=draw)))  # fmt: skip


def embed(args: Namespace) -> None:
    from nepa_jax.evals.embed import embed
    from nepa_jax.loading import load

    loaded = load(args.checkpoint, ema=args.ema, objective=args.objective)
    found = embed(args.images, loaded, args.out, args.layer, args.pool, args.split)
    labels = f", labels of {len(found.classes)} classes" if found.classes else ""
    print(f"done: {args.out}: names, features float32 {list(found.features.shape)}{labels}")
    print(f"next: python -c \"import numpy; print(numpy.load('{args.out}')['features'])\"")


def together(args: Namespace, work: Run) -> None:
    """Does the work on all hosts, if there are several: each finds all numbers, the first writes."""
    layer_of(args.layer)
    from nepa_jax.hosts.start import failing_together, start

    start(args.coordinator, args.processes, args.process, args.path)
    with failing_together():
        work(args)


def evaluate(args: Namespace, draw: "Draw") -> None:
    """Runs one probe: on the encoder, and on the same untrained."""
    subject, facts, folder = opened(args, PROBES[args.probe])
    from nepa_jax.evals import results, running
    from nepa_jax.hosts.agree import say

    options = {key: getattr(args, key) for key in PROBES[args.probe].options}
    control, pixels = control_of(args, subject), pixels_of(args, subject)
    report = running.evaluate(args.probe, subject, facts, options, control, pixels)
    files = running.write(folder, report, draw)
    for line in [results.as_json(report)] if args.json else running.lines_of(report):
        say(line)
    if not args.json:
        say(f"done: {', '.join(map(str, files))}")
        say(f"next: nepa-jax eval all {args.path} --data={args.data}")


def evaluate_all(args: Namespace, draw: "Draw") -> None:
    """Runs the standard set and writes one page of it."""
    subject, facts, folder = opened(args, Probe("all"))
    from nepa_jax.evals import results, running
    from nepa_jax.hosts.agree import say

    names = {
        name: {key: how.get("default") for key, how in PROBES[name].options.items()} | options
        for name, options in STANDARD.items()
    }
    reports, left_out = [], {}
    for found in running.evaluate_all(names, subject, facts, control_of(args, subject)):
        if isinstance(found, tuple):
            left_out |= dict([found])
            say(f"left out: {found[1]}")
            continue
        reports.append(found)
        running.write(folder, found, draw)
        for line in () if args.json else running.lines_of(found):
            say(line)
    files = running.write_card(folder, reports, left_out, draw)
    say(results.as_json({each["probe"]: each for each in reports}) if args.json else
        f"done: {', '.join(map(str, files))}, and a .json and a .png of each probe in {folder}")  # fmt: skip


def opened(args: Namespace, probe: Probe) -> "tuple[Subject, dict[str, Any], Path]":
    """What is evaluated, the facts of it, and the folder for the results; all that can be wrong is
    found here, before anything is encoded."""
    from nepa_jax.evals import results, running
    from nepa_jax.evals.subject import subject_of
    from nepa_jax.loading import load

    loaded = load(args.path, ema=args.ema, step=args.step, objective=args.objective)
    folder = results.eval_folder(args.path, args.out)
    subject = subject_of(
        loaded, args.data, splits=(args.split, args.test_split), layer=layer_of(args.layer), pools=(args.pool,),
        attention=args.attention or probe.attention,
        image_size=args.image_size or side_of(args, probe, loaded.config.model.patch_size),
        train_images=args.train_images,
    )  # fmt: skip
    return subject, running.facts_of(args, subject), folder


def control_of(args: Namespace, subject: "Subject") -> "Subject | None":
    """The same encoder untrained, unless it is left out."""
    return None if args.no_untrained else subject.untrained()


def pixels_of(args: Namespace, subject: "Subject") -> "Pixels | None":
    """The images themselves, if they are asked for."""
    from nepa_jax.evals.pixels import Pixels

    return Pixels(subject) if PROBES[args.probe].pixels and args.pixels else None


def side_of(args: Namespace, probe: Probe, patch_size: int) -> int | None:
    """The side of a protocol's own images, px; None: the encoder's."""
    side = probe.image_size.get(getattr(args, "preset", ""))
    return side and -(-side // patch_size) * patch_size


def layer_of(text: str) -> int | None:
    """Raises UserError for what is neither a whole number nor ``all``."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--layer={text}: give all, or a whole number such as -1") from None
