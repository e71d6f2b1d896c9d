"""What a command line is made of: verbs, which are functions of the arguments, and their options."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from nepa_jax.base.errors import UserError

Run = Callable[[argparse.Namespace], None]
Part = Callable[[Any], object]  # adds something to a parser


class Parser(argparse.ArgumentParser):
    """One whose options are written out, and whose errors are one line. Alone it shows its help."""

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, **settings)
        self.set_defaults(run=lambda args: self.print_help())

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; `{self.prog} --help` tells what there is")


def verb(verbs: Any, name: str, summary: str, example: str, *parts: Part) -> Callable[[Run], Run]:
    """Makes a function one of the verbs: with a line on what it does, an example, and options."""
    parser = verbs.add_parser(name, help=summary, description=summary)
    parser.epilog = f"example: {parser.prog} {example}"
    for part in parts:
        part(parser)

    def added(run: Run) -> Run:
        parser.set_defaults(run=run)
        return run

    return added


def option(*names: str, **settings: Any) -> Part:
    """An argument, as ``ArgumentParser.add_argument`` takes it."""
    return lambda parser: parser.add_argument(*names, **settings)


def group(title: str, description: str, *parts: Part) -> Part:
    """Options that stand together under a title."""

    def add(parser: argparse.ArgumentParser) -> None:
        titled = parser.add_argument_group(title, description)
        for part in parts:
            part(titled)

    return add


def whole(low: int, high: int) -> Callable[[str], int]:
    """Reads an option that is a whole number from low to high."""

    def read(text: str) -> int:
        if text.isdecimal() and len(text) < 20 and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from {low:,} to {high:,}")

    return read


SEVERAL_HOSTS = group(
    "several hosts",
    "found by itself on TPU pods, GKE, Kubernetes and SLURM; elsewhere start the same command "
    "on each host with --coordinator=10.0.0.2:8476 --processes=4 --process=0 (1, 2, 3)",
    option("--coordinator", help="HOST:PORT of process 0, the same on all hosts"),
    option("--processes", type=whole(1, 1_000_000), help="how many processes there are"),
    option("--process", type=whole(0, 1_000_000), help="which one this is, from 0"),
)


def parse(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ``run`` is the verb's function, and ``overrides`` what is set of its config.

    Raises:
        UserError: one is unknown, missing, wrong or empty.
    """
    args, rest = parser.parse_known_args(argv)
    for name, value in vars(args).items():
        if value == "":
            raise UserError(
                f"the value of {name.replace('_', '-')} is empty; give one, or leave it out"
            )
    args.overrides = parse_overrides(rest, allowed=hasattr(args, "config"))
    return args


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
