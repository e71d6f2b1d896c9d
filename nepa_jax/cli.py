"""The command line: verbs and their options. The work is done elsewhere.

Imports stand inside the verbs, so that --help and mistakes are answered without loading jax.
"""

import json
import os
import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nepa_jax.base.errors import RunDiverged, UnavailableError, UserError
from nepa_jax.base.streams import lost_output, make_standard_streams_last
from nepa_jax.base.text import printable
from nepa_jax.base.verbs import Parser, option, parse, verb, whole
from nepa_jax.base.version import versions
from nepa_jax.evals.verb import add_verbs as add_eval_verbs
from nepa_jax.report.verb import add_verbs as add_report_verbs
from nepa_jax.run.verb import add_verbs as add_training_verbs
from nepa_jax.scaling.verb import add_verbs as add_scaling_verbs
from nepa_jax.visualize.verb import add_verbs as add_picture_verbs

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from nepa_jax.evals.results import Report


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb. Exit code 0: done; 2: the input is wrong; 1: anything else."""
    if argv is None:
        make_standard_streams_last()
    try:
        run(argv)
    except UserError as error:
        end(2, f"error: {error}")
    except UnavailableError as error:
        end(1, f"error: {error}")
    except RunDiverged as error:
        end(1, f"stopped: {error}")
    except KeyboardInterrupt:
        end(1, "interrupted")


def end(code: int, why: str) -> None:
    print(f"nepa-jax: {why}", file=sys.stderr)
    sys.exit(code)


def run(argv: Sequence[str] | None) -> None:
    """Reads the arguments and calls the verb's function.

    Raises:
        UserError: of the arguments or of the verb.
        UnavailableError: of the verb, or the output could not be written.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the current folder does not exist any more; cd to another") from None
    args = parse(COMMAND, argv)
    args.run(args)
    if why := lost_output():
        raise UnavailableError(f"the output could not be written ({why})")


FIRST_STEPS = """\
example:
  nepa-jax demo                                  everything at once, on images that come with it
  nepa-jax data prepare PHOTOS --out=data/photos
  nepa-jax configs                               the recipes
  nepa-jax pretrain --config=configs/nepa.py:S/16 --config.data.path=data/photos --workdir=runs/nepa
`nepa-jax VERB --help` has an example for each. documentation: README.md and docs/ of the source"""

COMMAND = Parser(
    prog="nepa-jax",
    description="Self-supervised pretraining of vision transformers in JAX.",
    epilog=FIRST_STEPS,
    formatter_class=RawDescriptionHelpFormatter,
)
COMMAND.add_argument(
    "--version",
    action="store_const",
    dest="run",
    const=lambda args: print(versions()),
    help="print versions, for reports of bugs",
)
VERBS = COMMAND.add_subparsers(metavar="VERB")

# What several verbs take.

CONFIG = option("--config", required=True, help="FILE.py[:argument]; --config.KEY=VALUE overrides a key")  # fmt: skip
JSON = option("--json", action="store_true")
EMA = option("--ema", action="store_true", help="the averaged weights")


def config_of(args: Namespace) -> "ConfigDict":
    """The recipe with the command line's overrides."""
    from nepa_jax.config import load_config

    return load_config(args.config, args.overrides)


@verb(
    VERBS, "demo", "the whole path on small real data, in about four minutes", "--workdir=runs/demo",
    option("--workdir", default="runs/demo", help="folder for everything it makes"),
)  # fmt: skip
def demo(args: Namespace) -> None:
    from nepa_jax.demo.demo import demo

    demo(args.workdir)


# Data sets

DATA = VERBS.add_parser("data", help="prepare, inspect and verify data sets").add_subparsers(metavar="WHAT")  # fmt: skip


@verb(
    DATA, "prepare", "write images as shuffled record shards", "photos.zip --out=data/photos",
    option("source", help="class folders, a zip or tar of them, ILSVRC tars, parquet, a prepared set"),
    option("--out", required=True, help="folder for the shards; a split that is there, whole and of "
           "the same images and options, is kept as it is (exit code 0), and of others is an error"),
    option("--split", default="train", help="its name, also in the source"),
    option("--shards", type=whole(1, 100_000), help="number of shards (default: by size)"),
    option("--labels", help="ground truth of the ILSVRC validation tar"),
    option("--reencode", help="e.g. short_side=384,quality=90: smaller and faster, not exact"),
    option("--masks", help="of ADE20K's layout: ignore=11, reduce_zero_label=true, what is no class"),
)  # fmt: skip
def data_prepare(args: Namespace) -> None:
    from nepa_jax.data.prepare.split import prepare

    entry = prepare(
        args.source, args.out, args.split, args.shards, labels=args.labels,
        reencode=args.reencode, masks=args.masks,
    )  # fmt: skip
    print(
        f"done: {entry['num_examples']:,} images, {entry['bytes'] / 1e6:,.1f} MB, "
        f"{len(entry['shards'])} shards of split {args.split!r} in {args.out}"
    )
    first, place = (
        (f"mount or copy {args.out}, then: ", "FOLDER") if "://" in args.out else ("", args.out)
    )
    print(f"next: {first}nepa-jax data inspect {place}")


@verb(DATA, "inspect", "show what a data set holds", "data/photos", option("path"), JSON)
def data_inspect(args: Namespace) -> None:
    from nepa_jax.data.prepare.inspect import inspect, text_of

    found = inspect(args.path)
    print(json.dumps(found) if args.json else text_of(found))


@verb(
    DATA, "sheet", "draw a contact sheet", "data/photos --out=sheet.png",
    option("path"), option("--out", required=True, help="a PNG file"),
)  # fmt: skip
def data_sheet(args: Namespace) -> None:
    from nepa_jax.data.prepare.inspect import contact_sheet, named

    for line in named(contact_sheet(args.path, args.out)):
        print(f"  stays black: {printable(line)}")
    print(f"done: {args.out}")


@verb(DATA, "verify", "read and decode every record", "data/photos", option("path"), JSON)
def data_verify(args: Namespace) -> None:
    from nepa_jax.data.prepare.inspect import named, verify

    bad = verify(args.path)
    if args.json:
        print(json.dumps({split: named(records, 1000) for split, records in bad.items()}))
    else:
        for split, records in bad.items():
            lines = map(printable, named(records))
            print(f"{split}: {len(records):,} bad records", *lines, sep="\n  ")
    sys.exit(1 if any(bad.values()) else 0)


# Training


def train(config: "ConfigDict", workdir: str) -> None:
    from nepa_jax.train import pretrain

    pretrain(config, workdir)


def draw_confusion(folder: Path) -> list[str]:
    from nepa_jax.visualize import confusion

    return confusion.draw_of(folder)


add_training_verbs(VERBS, config_of, train, draw_confusion)


@verb(VERBS, "configs", "list the recipes: sizes, parameters, cost of a step", "")
def configs(args: Namespace) -> None:
    from nepa_jax.plan.catalogue import print_catalogue

    print_catalogue()


# Weights and features


@verb(
    VERBS, "export", "write weights for PyTorch libraries", "W --format=nepa --out=DIR --check",
    option("path", help="workdir of a pretraining run, or WORKDIR/checkpoints/STEP"),
    option("--step", type=whole(0, 2**31), help="of the checkpoint (default: the newest sound one)"),
    option("--format", required=True, help="nepa, mae, vit_mae, vit, timm, timm_eva, big_vision"),
    option("--out", required=True, help="folder for the exported files"),
    EMA,
    option("--encoder-only", action="store_true", help="without MAE's decoder"),
    option("--image-size", type=whole(1, 16_384), help="resample the position table to this size, px"),
    option("--fold-layer-scale", action="store_true", help="into the maps before it: the same function"),
    option("--objective", help="a module of your own, if the checkpoint names one"),
    option("--check", action="store_true", help="compare with PyTorch, layer by layer"),
)  # fmt: skip
def export(args: Namespace) -> None:
    from nepa_jax.export.folder import export
    from nepa_jax.export.printing import print_names, print_parity

    report = export(
        args.path, args.format, args.out, ema=args.ema, step=args.step,
        encoder_only=args.encoder_only, image_size=args.image_size,
        fold_layer_scale=args.fold_layer_scale, objective=args.objective,
    )  # fmt: skip
    print_names(report.names)
    if args.check:
        from nepa_jax.export.parity import check

        source = None if args.image_size else args.path
        parity = check(args.out, source, objective=args.objective)
        print_parity(parity)
        parity.require_equal()
    print(f"done: {', '.join(report.files)} in {args.out}")
    print(f"next: {args.out}/README.md says how to load it")


@verb(
    VERBS, "import", "read other libraries' weights",
    "DIR --format=nepa --workdir=W; --config.KEY=VALUE, such as --config.model.num_heads=12, where "
    "files do not say it",
    option("path", help="file or folder of weights"),
    option("--format", required=True, help="as for export"),
    option("--workdir", required=True, help="new workdir for the weights"),
    option("--allow-partial", action="store_true", help="though names are missing or left over"),
    lambda parser: parser.set_defaults(config=None),
)  # fmt: skip
def import_(args: Namespace) -> None:
    from nepa_jax.export.importing import import_checkpoint
    from nepa_jax.export.printing import print_names
    from nepa_jax.formats.sources import Choices

    report = import_checkpoint(
        args.path, args.format, args.workdir, choices=Choices(overrides=args.overrides),
        allow_partial=args.allow_partial,
    )  # fmt: skip
    print_names(report.names)
    print(f"done: {args.workdir}/checkpoints/0")
    print(f"next: python -c \"import nepa_jax; nepa_jax.load('{args.workdir}')\"")


def draw_layers(reports: "Sequence[Report]", path: Path) -> Path:
    from nepa_jax.visualize import layers

    return layers.draw(reports, path)


add_eval_verbs(VERBS, draw_layers)
add_report_verbs(VERBS)
add_picture_verbs(VERBS)
add_scaling_verbs(VERBS)


# Speed


@verb(
    VERBS, "plan", "what a step needs on TPUs that are not here: memory, FLOPs, time; does it fit",
    "--config=configs/nepa.py:L/14 --config.data.batch_size=4096 --topology=v5e:16x16",
    CONFIG,
    option("--topology", action="append", required=True,
           help="such as v5e:16x16, v5p:4x4x8 (v4, v5e, v5p, v6e, tpu7x); several times: each"),
    option("--where", action="store_true", help="time by part of the model, forward and backward"),
    option("--search", action="store_true", help="the best of mesh, remat and microbatches"),
    option("--hours", action="store_true", help="hours and chip-hours of the whole run"),
    option("--chips", type=whole(1, 1_000_000), help="--hours: on so many (default: the topology's)"),
    option("--price", type=float, help="--hours: of a chip for an hour, for the cost"),
    JSON,
)  # fmt: skip
def plan(args: Namespace) -> None:
    config = config_of(args)
    from nepa_jax.plan.verb import Asked, print_plans

    asked = Asked(args.where, args.search, args.hours, args.chips, args.price)
    print_plans(config, args.topology, asked, as_json=args.json)


@verb(
    VERBS, "bench", "measure the step, the input pipeline, both together, saving, features, or linear probes",
    "step --config=configs/nepa.py:S/16 --config.data.batch_size=16",
    option("what", choices=("step", "data", "e2e", "checkpoint", "export", "features", "heads", "online")),
    CONFIG,
    option("--against", choices=("torch",), help="bench step, data: in turns with the same in PyTorch"),
    option("--where", action="store_true", help="bench step: what the parts of the model take"),
    JSON,
)  # fmt: skip
def bench(args: Namespace) -> None:
    if args.against and args.what not in ("step", "data"):
        raise UserError(f"--against=torch is for `bench step` and `data`, not `bench {args.what}`")
    if args.where and args.what != "step":
        raise UserError(f"--where is for `bench step`, not `bench {args.what}`")
    config = config_of(args)
    from nepa_jax.bench.verb import measure, table_of

    options = {"against_torch": args.against, "where": args.where}
    result = measure(args.what, config, **{name: True for name, given in options.items() if given})
    print(json.dumps(result) if args.json else table_of(result))
