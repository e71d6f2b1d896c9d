"""The command line: verbs and their options. The work is done elsewhere."""

import argparse
import sys
from collections.abc import Sequence

from nepa_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one verb. Exit code 0: done; 2: the input is wrong; 1: anything else."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    try:
        args.overrides = parse_overrides(rest) if getattr(args, "takes_config", False) else no_more(rest)
        args.run(args)
    except UserError as error:
        print(f"nepa-jax: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("nepa-jax: interrupted; the same command resumes from the last checkpoint", file=sys.stderr)
        sys.exit(1)


def parse_overrides(rest: Sequence[str]) -> dict[str, str]:
    """``--config.a.b=v`` or ``--config.a.b v`` as ``{"a.b": "v"}``.

    Raises:
        UserError: an argument is none of these.
    """
    overrides: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        key, equals, value = word.partition("=")
        if not key.startswith("--config."):
            raise UserError(f"argument {word!r} is unknown; see --help")
        overrides[key.removeprefix("--config.")] = value if equals else next(words, "")
    return overrides


def no_more(rest: Sequence[str]) -> dict[str, str]:
    if rest:
        raise UserError(f"argument {rest[0]!r} is unknown; see --help")
    return {}


def load_run_config(args: argparse.Namespace):  # noqa: ANN201
    from nepa_jax.config import apply_overrides, load_config

    config = load_config(args.config)
    apply_overrides(config, args.overrides)
    return config


def run_pretrain(args: argparse.Namespace) -> None:
    config = load_run_config(args)
    from nepa_jax.train import pretrain

    pretrain(config, args.workdir)
    print(f"done: checkpoints and metrics.jsonl are in {args.workdir}")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nepa-jax", description="Self-supervised pretraining of vision transformers in JAX."
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verb = add_verb(verbs, "pretrain", run_pretrain, "pretrain a model; the same command resumes",
                    "nepa-jax pretrain --config=configs/nepa.py:S/16 --config.data.path=DIR --workdir=W")
    add_config(verb)
    verb.add_argument("--workdir", required=True, help="folder for checkpoints and metrics")
    return parser


def add_verb(verbs, name, run, summary, example):
    verb = verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}", allow_abbrev=False)
    verb.set_defaults(run=run)
    return verb


def add_config(verb):
    verb.add_argument("--config", required=True, help="FILE.py[:argument]; --config.KEY=VALUE overrides a key")
    verb.set_defaults(takes_config=True)
