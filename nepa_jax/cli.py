"""The command line: verbs and their options. The work is done elsewhere.

Imports stand inside the verbs, so that --help and mistakes are answered without loading jax.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from nepa_jax.base.errors import RunDiverged, UnavailableError, UserError
from nepa_jax.base.streams import lost_output, make_standard_streams_last
from nepa_jax.base.text import printable

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb. Exit code 0: done; 2: the input is wrong; 1: anything else."""
    if argv is None:
        make_standard_streams_last()
    try:
        run(argv)
    except UserError as error:
        print(f"nepa-jax: error: {error}", file=sys.stderr)
        sys.exit(2)
    except UnavailableError as error:
        print(f"nepa-jax: error: {error}", file=sys.stderr)
        sys.exit(1)
    except RunDiverged as error:
        print(f"nepa-jax: stopped: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("nepa-jax: interrupted", file=sys.stderr)
        sys.exit(1)


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
    args, rest = make_parser().parse_known_args(argv)
    for name, value in vars(args).items():
        if value == "":
            raise UserError(
                f"the value of {name.replace('_', '-')} is empty; give one, or leave it out"
            )
    args.overrides = parse_overrides(rest, allowed=hasattr(args, "config"))
    args.run(args)
    if why := lost_output():
        raise UnavailableError(f"the output could not be written ({why})")


def parse_overrides(rest: Sequence[str], allowed: bool) -> dict[str, str]:
    """``--config.a.b=v`` or ``--config.a.b v`` as ``{"a.b": "v"}``.

    Raises:
        UserError: an argument is none of these, or the verb takes no config.
    """
    overrides: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        key, equals, value = word.partition("=")
        if not allowed or not key.startswith("--config."):
            raise UserError(
                f"argument {word!r} is unknown; `nepa-jax VERB --help` lists those there are"
            )
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise UserError(f"argument {word!r} has no value; write {word}=VALUE")
        overrides[key.removeprefix("--config.")] = value
    return overrides


def load_run_config(args: argparse.Namespace) -> "ConfigDict":
    """The recipe with the command line's overrides."""
    from nepa_jax.config import load_config

    return load_config(args.config, args.overrides)


# Verbs


def pretrain(args: argparse.Namespace) -> None:
    from nepa_jax.config import has_own_mesh, to_json, validate

    config = load_run_config(args)
    if args.print_config:
        print(to_json(config))
        return
    if args.workdir is None:
        raise UserError("--workdir is missing; give a folder for checkpoints and metrics")
    if not has_own_mesh(config):  # which is checked with the rest, and that needs jax
        validate(config)
    from nepa_jax.hosts.agree import say
    from nepa_jax.hosts.start import failing_together, start

    start(args.coordinator, args.processes, args.process, args.workdir)
    with failing_together():
        from nepa_jax.train import pretrain

        pretrain(config, args.workdir)
    if (Path(args.workdir) / "DONE").exists():
        say(f"done: {args.workdir}/checkpoints, {args.workdir}/metrics.jsonl")
        say(f"next: nepa-jax export {args.workdir} --format=... --out=DIR")


def list_configs(args: argparse.Namespace) -> None:
    from nepa_jax.plan.catalogue import print_catalogue

    print_catalogue()


def demo(args: argparse.Namespace) -> None:
    from nepa_jax.demo.demo import demo

    demo(args.workdir)


def data_prepare(args: argparse.Namespace) -> None:
    from nepa_jax.data.prepare.split import prepare

    entry = prepare(
        args.source, args.out, args.split, args.shards, labels=args.labels, reencode=args.reencode
    )
    print(
        f"done: {entry['num_examples']:,} images, {entry['bytes'] / 1e6:,.1f} MB, "
        f"{len(entry['shards'])} shards of split {args.split!r} in {args.out}"
    )
    if "://" in args.out:
        print(f"next: mount or copy {args.out}, then: nepa-jax data inspect FOLDER")
    else:
        print(f"next: nepa-jax data inspect {args.out}")


def data_inspect(args: argparse.Namespace) -> None:
    from nepa_jax.data.prepare.inspect import inspect

    found = inspect(args.path)
    if args.json:
        print(json.dumps(found))
        return
    classes = [printable(name) for name in found.pop("classes")]
    print(json.dumps(found, indent=2))
    print(f"classes: {', '.join(classes[:10])}{' …' if len(classes) > 10 else ''}")
    if any(split["images"]["unreadable"] for split in found["splits"].values()):
        print(f"some records cannot be read: nepa-jax data verify {args.path}")


def data_verify(args: argparse.Namespace) -> None:
    from nepa_jax.data.prepare.inspect import named, verify

    bad = verify(args.path)
    if args.json:
        print(json.dumps({split: named(records, 1000) for split, records in bad.items()}))
    else:
        for split, records in bad.items():
            print(f"{split}: {len(records):,} bad records")
            for line in named(records):
                print(f"  {printable(line)}")
    sys.exit(1 if any(bad.values()) else 0)


def data_sheet(args: argparse.Namespace) -> None:
    from nepa_jax.data.prepare.inspect import contact_sheet, named

    black = contact_sheet(args.path, args.out)
    for line in named(black):
        print(f"  stays black: {printable(line)}")
    print(f"done: {args.out}")


def export(args: argparse.Namespace) -> None:
    from nepa_jax.export.folder import export
    from nepa_jax.export.report import print_names, print_parity

    report = export(
        args.path,
        args.format,
        args.out,
        ema=args.ema,
        step=args.step,
        encoder_only=args.encoder_only,
        image_size=args.image_size,
        objective=args.objective,
    )
    print_names(report.names)
    if args.check:
        from nepa_jax.export.parity import check

        source = None if args.image_size else args.path
        parity = check(args.out, source, objective=args.objective)
        print_parity(parity)
        parity.require_equal()
    print(f"done: {', '.join(report.files)} in {args.out}")
    print(f"next: {args.out}/README.md says how to load it")


def import_(args: argparse.Namespace) -> None:
    from nepa_jax.export.importing import import_checkpoint
    from nepa_jax.export.report import print_names
    from nepa_jax.formats.sources import Choices

    report = import_checkpoint(
        args.path, args.format, args.workdir, choices=Choices(overrides=args.overrides),
        allow_partial=args.allow_partial,
    )  # fmt: skip
    print_names(report.names)
    print(f"done: {args.workdir}/checkpoints/0")
    print(f"next: python -c \"import nepa_jax; nepa_jax.load('{args.workdir}')\"")


def embed(args: argparse.Namespace) -> None:
    from nepa_jax.evals.embed import embed
    from nepa_jax.loading import load

    loaded = load(args.checkpoint, ema=args.ema, objective=args.objective)
    found = embed(args.images, loaded, args.out, args.layer, args.pool, args.split)
    labels = f", labels of {len(found.classes)} classes" if found.classes else ""
    print(f"done: {args.out}: names, features float32 {list(found.features.shape)}{labels}")
    print(f"next: python -c \"import numpy; print(numpy.load('{args.out}')['features'])\"")


def bench(args: argparse.Namespace) -> None:
    if args.against and args.what != "data":
        raise UserError(f"--against={args.against} is for `bench data`, not `bench {args.what}`")
    config = load_run_config(args)
    from nepa_jax.bench.step import bench_checkpoint, bench_data, bench_e2e, bench_step, table_of

    if args.what == "data":
        result = bench_data(config, against_torch=args.against == "torch")
    else:
        from nepa_jax.bench.export import bench_export

        measure = {
            "step": bench_step, "e2e": bench_e2e,
            "checkpoint": bench_checkpoint, "export": bench_export,
        }  # fmt: skip
        result = measure[args.what](config)
    if args.json:
        print(json.dumps(result))
    if args.json or args.what == "data":  # which prints a table of its own
        return
    print(table_of(result))


# Parsers

FIRST_STEPS = """\
example:
  nepa-jax demo                                  everything at once, on images that come with it
  nepa-jax data prepare PHOTOS --out=data/photos
  nepa-jax configs                               the recipes
  nepa-jax pretrain --config=configs/nepa.py:S/16 --config.data.path=data/photos --workdir=runs/nepa
`nepa-jax VERB --help` has an example for each. documentation: README.md and docs/ of the source"""


class Parser(argparse.ArgumentParser):
    """One whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; `{self.prog} --help` tells what there is")


def whole(low: int, high: int) -> Callable[[str], int]:
    """Reads an option that is a whole number from low to high."""

    def read(text: str) -> int:
        if text.isdecimal() and len(text) < 20 and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from {low:,} to {high:,}")

    return read


def print_versions() -> None:
    """Ours, Python's and those of the libraries that compute, read and save; devices are not touched."""
    from importlib.metadata import version

    from nepa_jax.base.version import __version__

    print(f"nepa-jax {__version__}")
    print(f"python {platform.python_version()} on {platform.platform()}")
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "array-record", "numpy")
    print(", ".join(f"{name} {version(name)}" for name in names))


def make_parser() -> argparse.ArgumentParser:
    """All verbs; a verb with ``--config`` takes ``--config.KEY=VALUE`` too."""
    parser = Parser(
        prog="nepa-jax",
        description="Self-supervised pretraining of vision transformers in JAX.",
        epilog=FIRST_STEPS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="store_true", help="print versions, for reports of bugs"
    )
    parser.set_defaults(run=lambda args: print_versions() if args.version else parser.print_help())
    verbs = parser.add_subparsers(metavar="VERB")

    verb = add(
        verbs,
        "demo",
        demo,
        "the whole path on small real data, in about four minutes",
        "--workdir=runs/demo",
    )
    verb.add_argument("--workdir", default="runs/demo", help="folder for everything it makes")

    data = verbs.add_parser("data", help="prepare, inspect and verify data sets")
    data.set_defaults(run=lambda args: data_parser.print_help())
    data_parser, data = data, data.add_subparsers(metavar="WHAT")
    verb = add(
        data,
        "prepare",
        data_prepare,
        "write images as shuffled record shards",
        "photos.zip --out=data/photos",
    )
    verb.add_argument(
        "source", help="class folders, a zip or tar of them, ILSVRC tars, parquet, a prepared set"
    )
    verb.add_argument(
        "--out",
        required=True,
        help="folder for the shards; a split that is there, whole and of the same images and "
        "options, is kept as it is (exit code 0), and of others is an error",
    )
    verb.add_argument("--split", default="train", help="its name, also in the source")
    verb.add_argument(
        "--shards", type=whole(1, 100_000), help="number of shards (default: by size)"
    )
    verb.add_argument("--labels", help="ground truth of the ILSVRC validation tar")
    verb.add_argument(
        "--reencode", help="e.g. short_side=384,quality=90: smaller and faster, not exact"
    )
    verb = add(data, "inspect", data_inspect, "show what a data set holds", "data/photos")
    verb.add_argument("path")
    verb.add_argument("--json", action="store_true")
    verb = add(data, "sheet", data_sheet, "draw a contact sheet", "data/photos --out=sheet.png")
    verb.add_argument("path")
    verb.add_argument("--out", required=True, help="a PNG file")
    verb = add(data, "verify", data_verify, "read and decode every record", "data/photos")
    verb.add_argument("path")
    verb.add_argument("--json", action="store_true")

    verb = add(verbs, "pretrain", pretrain, "pretrain a model; the same command resumes",
               "--config=configs/nepa.py:S/16 --config.data.path=DIR --workdir=W")  # fmt: skip
    add_config(verb)
    verb.add_argument("--workdir", help="folder for checkpoints and metrics")
    verb.add_argument(
        "--print-config",
        action="store_true",
        help="print the config, as a file that runs again, and stop",
    )
    verb.epilog += "; `nepa-jax configs` lists the recipes, and configs/base.py every key"
    add_hosts(verb)

    add(verbs, "configs", list_configs, "list the recipes: sizes, parameters, cost of a step", "")

    verb = add(
        verbs,
        "export",
        export,
        "write weights for PyTorch libraries",
        "W --format=nepa --out=DIR --check",
    )
    verb.add_argument("path", help="workdir of a pretraining run, or WORKDIR/checkpoints/STEP")
    verb.add_argument(
        "--step", type=whole(0, 2**31), help="of the checkpoint (default: the newest sound one)"
    )
    verb.add_argument(
        "--format", required=True, help="nepa, mae, vit_mae, vit, timm, timm_eva, big_vision"
    )
    verb.add_argument("--out", required=True, help="folder for the exported files")
    verb.add_argument("--ema", action="store_true", help="the averaged weights")
    verb.add_argument("--encoder-only", action="store_true", help="without MAE's decoder")
    verb.add_argument(
        "--image-size", type=whole(1, 16_384), help="resample the position table to this size, px"
    )
    verb.add_argument("--objective", help="a module of your own, if the checkpoint names one")
    verb.add_argument("--check", action="store_true", help="compare with PyTorch, layer by layer")

    verb = add(
        verbs, "import", import_, "read other libraries' weights", "DIR --format=nepa --workdir=W"
    )
    verb.add_argument("path", help="file or folder of weights")
    verb.add_argument("--format", required=True, help="as for export")
    verb.add_argument("--workdir", required=True, help="new workdir for the weights")
    verb.epilog += (
        "; --config.KEY=VALUE, such as --config.model.num_heads=12, where files do not say it"
    )
    verb.set_defaults(config=None)
    verb.add_argument(
        "--allow-partial", action="store_true", help="though names are missing or left over"
    )

    verb = add(verbs, "embed", embed, "write features of any images",
               "PHOTOS --checkpoint=W --layer=-1 --pool=mean --out=features.npz")  # fmt: skip
    verb.add_argument("images", nargs="+", help="files; or one folder, archive or prepared set")
    verb.add_argument("--checkpoint", required=True, help="workdir, export, or weights of others")
    verb.add_argument("--layer", type=int, default=-1, help="0: the embedding; -1: the last")
    verb.add_argument("--pool", choices=("mean", "cls", "last", "none"), default="mean")
    verb.add_argument("--split", default="train", help="of a source that has several")
    verb.add_argument("--out", required=True, help="a file .npz")
    verb.add_argument("--ema", action="store_true", help="the averaged weights")
    verb.add_argument("--objective", help="the module of one's own that the weights belong to")

    verb = add(verbs, "bench", bench, "measure the step, the input pipeline, both together, or saving",
               "step --config=configs/nepa.py:S/16 --config.data.batch_size=16")  # fmt: skip
    verb.add_argument("what", choices=("step", "data", "e2e", "checkpoint", "export"))
    add_config(verb)
    verb.add_argument("--against", choices=("torch",), help="bench data: beside a PyTorch loader")
    verb.add_argument("--json", action="store_true")
    return parser


def add(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], None], summary: str, example: str
) -> argparse.ArgumentParser:
    """One verb with its summary and an example."""
    verb = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
    verb.epilog = f"example: {verb.prog} {example}"
    verb.set_defaults(run=run)
    return verb


def add_config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--config", required=True, help="FILE.py[:argument]; --config.KEY=VALUE overrides a key"
    )


def add_hosts(verb: argparse.ArgumentParser) -> None:
    hosts = verb.add_argument_group(
        "several hosts",
        "found by itself on TPU pods, GKE, Kubernetes and SLURM; elsewhere start the same command "
        "on each host with --coordinator=10.0.0.2:8476 --processes=4 --process=0 (1, 2, 3)",
    )
    hosts.add_argument("--coordinator", help="HOST:PORT of process 0, the same on all hosts")
    hosts.add_argument("--processes", type=whole(1, 1_000_000), help="how many processes there are")
    hosts.add_argument("--process", type=whole(0, 1_000_000), help="which one this is, from 0")
