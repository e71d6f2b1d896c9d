"""Runs probes on a subject and on its untrained control, writes what they find, and tells it."""

from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import jax

from nepa_jax.base.errors import UserError
from nepa_jax.evals import card, results
from nepa_jax.evals.encoders import weights_digest
from nepa_jax.evals.frozen import TRANSFORM
from nepa_jax.evals.pixels import Pixels
from nepa_jax.evals.subject import Subject
from nepa_jax.hosts.agree import say

Draw = Callable[[Sequence[results.Report], Path], Path]  # the curves over layers, to a PNG


def evaluate(
    name: str,
    subject: Subject,
    facts: Mapping[str, Any],
    options: Mapping[str, Any],
    control: Subject | None,
    pixels: Pixels | None = None,
) -> results.Report:
    """What a probe finds of an encoder and, as a control, of the same untrained.

    Args:
        name: of a probe, a module of this room.
        subject: the encoder and the images.
        facts: of them, for the report.
        options: keyword arguments of the probe's ``evaluate``.
        control: the untrained encoder, if it is to be probed too.
        pixels: the images themselves, if they are, for probes of one vector an image.
    """
    probe = import_module(f"nepa_jax.evals.{name}").evaluate
    found = probe(subject, **options)
    other = probe(control, **options) if control else None
    bare = probe(pixels, **options) if pixels else None
    return results.report(name, facts, found, other, bare)


def evaluate_all(
    names: Mapping[str, Mapping[str, Any]],
    subject: Subject,
    facts: Mapping[str, Any],
    control: Subject | None,
) -> Iterator[results.Report | tuple[str, str]]:
    """The reports of several probes; in place of one that these images or this disk do not allow,
    its name and why.

    Args:
        names: of the probes, with the options of each.
        subject: as for :func:`evaluate`, and so the others.
        facts: see there.
        control: see there.
    """
    for name, options in names.items():
        say(f"== {name}")
        try:
            yield evaluate(name, subject, facts, options, control)
        except UserError as error:
            yield name, str(error)


def write(folder: Path, report: results.Report, draw: Draw) -> list[Path]:
    """``NAME.json``, a line of ``results.csv`` and ``NAME.png``, on the first host."""
    if jax.process_index():
        return []
    files = results.write(folder, report)
    return [*files, draw([report], folder / f"{report['probe']}.png")]


def write_card(
    folder: Path, reports: Sequence[results.Report], left_out: Mapping[str, str], draw: Draw
) -> list[Path]:
    """``card.md`` and ``card.png``, on the first host.

    Raises:
        UserError: there is nothing to write of.
    """
    if not reports:
        raise UserError(*(f"{name}: {why}" for name, why in left_out.items()))
    if jax.process_index():
        return []
    results.replace_text(folder / "card.md", card.text_of(reports, left_out))
    return [folder / "card.md", draw(reports, folder / "card.png")]


def facts_of(args: Namespace, subject: Subject) -> dict[str, Any]:
    """Of which weights, images and pixels the numbers are."""
    loaded = subject.loaded
    return {
        "weights": str(Path(args.path)),
        "step": loaded.step,
        "average": args.ema,
        "checksum": weights_digest(loaded)[:16],
        "objective": loaded.config.objective.name,
        "model": loaded.config.model.to_dict(),
        "seed": loaded.config.run.seed,
        "attention": subject.attention,
        "data": args.data,
        "train_split": args.split,
        "test_split": args.test_split,
        "train_fingerprint": subject.train_records.fingerprint,
        "test_fingerprint": subject.test_records.fingerprint,
        "transform": {name: getattr(subject.data, name) for name in TRANSFORM},
    }


def lines_of(report: results.Report) -> Iterator[str]:
    """The numbers for people, layer by layer."""
    metric, others = report["metric"], report["untrained_by_layer"]
    yield f"{'layer':>5} {'pool':>6} {metric:>9}" + (f" {'untrained':>9}" if others else "")
    for i, row in enumerate(report["by_layer"]):
        mark = "  <" if row == report["number"] else ""
        place = f"{row.get('layer', ''):>5} {row.get('pool', ''):>6}"
        untrained = f" {others[i][metric]:9.4f}" if others else ""
        yield f"{place} {row[metric]:9.4f}{untrained}{mark}"
    chance = "" if report["chance"] is None else f"; chance is {report['chance']:.4f}"
    bare = f"; raw pixels give {report['pixels'][metric]:.4f}" if report["pixels"] else ""
    yield f"<: {report['chosen']}{chance}{bare}"
