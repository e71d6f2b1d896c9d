"""The verbs ``nepa-jax eval …``: opens an encoder, probes it and its untrained control, writes both.

A probe more is one line of :data:`PROBES`, and a module as :mod:`nepa_jax.evals.results` has it.
Loads nothing until a verb runs.
"""

from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nepa_jax.base.errors import UserError
from nepa_jax.base.verbs import group, option, verb, whole

if TYPE_CHECKING:
    from nepa_jax.evals.results import Outcome
    from nepa_jax.evals.subject import Subject


@dataclass(frozen=True)
class Probe:
    """A line of help, and the keyword arguments of ``evaluate`` as options of the command line."""

    summary: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    attention: str | None = None  # without --attention; None: as the encoder was trained


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
        "nearest neighbours, weighted: k = 20, T = 0.07, and all other settings beside it"
    ),
    "spatial": Probe(
        "spatial structure of the patch tokens: LDS, CDS, SRSS (with masks), RMSC; needs no labels",
        {
            "preset": dict(choices=("release", "paper"), default="release", help="which distances"),
            "masks": dict(help="an .npz with `masks` [images, rows, columns], for SRSS"),
        },
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


def add_verbs(verbs: Any) -> None:
    """Adds ``embed``, and ``eval`` with a verb below it for each probe."""
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
        parts = (*SPLITS, *own, ENCODER, lambda parser, name=name: parser.set_defaults(probe=name))
        verb(below, name, probe.summary, "W --data=DIR --layer=all", *parts)(evaluate)


def embed(args: Namespace) -> None:
    from nepa_jax.evals.embed import embed
    from nepa_jax.loading import load

    loaded = load(args.checkpoint, ema=args.ema, objective=args.objective)
    found = embed(args.images, loaded, args.out, args.layer, args.pool, args.split)
    labels = f", labels of {len(found.classes)} classes" if found.classes else ""
    print(f"done: {args.out}: names, features float32 {list(found.features.shape)}{labels}")
    print(f"next: python -c \"import numpy; print(numpy.load('{args.out}')['features'])\"")


def evaluate(args: Namespace) -> None:
    """Runs one probe: on the encoder, and on the same untrained."""
    layer = layer_of(args.layer)
    probe = PROBES[args.probe]
    from nepa_jax.evals import results
    from nepa_jax.evals.subject import subject_of
    from nepa_jax.hosts.agree import say
    from nepa_jax.loading import load

    loaded = load(args.path, ema=args.ema, step=args.step, objective=args.objective)
    folder = results.eval_folder(args.path, args.out)
    subject = subject_of(
        loaded, args.data, splits=(args.split, args.test_split), layer=layer, pools=(args.pool,),
        attention=args.attention or probe.attention, image_size=args.image_size,
        train_images=args.train_images,
    )  # fmt: skip
    options = {key: getattr(args, key) for key in probe.options}
    run = import_module(f"nepa_jax.evals.{args.probe}").evaluate
    found = run(subject, **options)
    control = None if args.no_untrained else run(subject.untrained(), **options)
    report = results.report(args.probe, facts_of(args, subject), found, control)
    files = results.write(folder, args.probe, report)
    for line in [results.as_json(report)] if args.json else lines_of(found, control):
        say(line)
    if not args.json:
        say(f"done: {', '.join(map(str, files))}")


def layer_of(text: str) -> int | None:
    """Raises UserError for what is neither a whole number nor ``all``."""
    if text == "all":
        return None
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--layer={text}: give all, or a whole number such as -1") from None


def facts_of(args: Namespace, subject: "Subject") -> dict[str, Any]:
    """Of which weights, images and pixels the numbers are."""
    from nepa_jax.evals.encoders import weights_digest
    from nepa_jax.evals.frozen import TRANSFORM

    return {
        "weights": str(Path(args.path)),
        "average": args.ema,
        "checksum": weights_digest(subject.loaded)[:16],
        "objective": subject.loaded.config.objective.name,
        "attention": subject.attention,
        "data": args.data,
        "train_split": args.split,
        "test_split": args.test_split,
        "train_fingerprint": subject.train_records.fingerprint,
        "test_fingerprint": subject.test_records.fingerprint,
        "transform": {name: getattr(subject.data, name) for name in TRANSFORM},
    }


def lines_of(found: "Outcome", control: "Outcome | None") -> Iterator[str]:
    """The numbers for people, layer by layer."""
    others = [None] * len(found.by_layer) if control is None else control.by_layer
    yield f"{'layer':>5} {'pool':>5} {found.metric:>9}" + (f" {'untrained':>9}" if control else "")
    for row, other in zip(found.by_layer, others, strict=True):
        mark = "  <" if row is found.number else ""
        place = f"{row.get('layer', ''):>5} {row.get('pool', ''):>5}"
        untrained = f" {other[found.metric]:9.4f}" if other else ""
        yield f"{place} {row[found.metric]:9.4f}{untrained}{mark}"
    chance = "" if found.chance is None else f"; chance is {found.chance:.4f}"
    yield f"<: {found.chosen}{chance}"
