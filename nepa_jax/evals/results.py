"""What a probe hands over, and how it is written.

A probe is a module ``nepa_jax/evals/NAME.py`` with

    evaluate(subject: Subject, **options) -> Outcome

and one line in ``verb.PROBES``: its summary and its own options. The verb does the rest: it opens the
encoder, calls ``evaluate`` on it and on the same encoder untrained, prints the number with chance and
the untrained encoder's beside it, and writes ``W/eval/NAME.json`` and a line of ``results.csv``.
"""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nepa_jax.base.errors import UserError, writing

# A row: ``layer``, ``pool``, the setting (k, T, C, lr …), scores as fractions (``top1``, ``top5``, ``miou`` …),
# ``epoch`` where something is trained; ``held_out``, the metric on the held-out part of train.
Row = dict[str, Any]
Report = Mapping[str, Any]  # what :func:`report` makes

SCORES = (
    "top1",
    "top5",
    "held_out",
    "pixel_accuracy",
    "mean_accuracy",
    "mean_dice",
    "by_class",
)  # of a row; its other keys say what they are the scores of


@dataclass(frozen=True)
class Outcome:
    """All that a probe found of one encoder."""

    protocol: Mapping[str, Any]  # all that decides the numbers, with the counts of images
    rows: Sequence[Row]  # every layer, pooling, setting
    by_layer: Sequence[Row]  # of each layer the row that the protocol takes
    number: Row  # the one that is reported
    chosen: str  # how it was, in words
    metric: str = "top1"  # the key of the reported score
    chance: float | None = None  # of that metric; None where there is none
    best: Row | None = None  # the highest on the test split itself: no number to report


def outcome(
    protocol: Mapping[str, Any],
    rows: Sequence[Row],
    by_layer: Sequence[Row],
    *,
    metric: str = "top1",
    chance: float | None = None,
) -> Outcome:
    """Takes of the layers the one with the highest ``held_out``; without such, the last.

    Args:
        protocol: see :class:`Outcome`.
        rows: every one.
        by_layer: of each layer and pooling the one that the protocol takes.
        metric: higher is better.
        chance: of it.
    """
    if all("held_out" in row for row in by_layer):
        number = max(by_layer, key=lambda row: row["held_out"])
        chosen = f"the layer by {metric} on a held-out part of the training split"
    else:
        number, chosen = by_layer[-1], "the last layer"
    if len({row.get("layer") for row in by_layer}) == 1:
        chosen = "the layer that was asked for"
    best = max(rows, key=lambda row: row.get(metric, 0.0))
    return Outcome(protocol, rows, by_layer, number, chosen, metric, chance, best)


def chance_of(train_labels: np.ndarray, test_labels: np.ndarray) -> float:
    """Top-1 of always guessing the most frequent class of the training images."""
    return float(np.mean(test_labels == np.bincount(train_labels).argmax()))


def same_setting(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of another encoder with this one's layer, pooling and whatever else is fixed."""
    setting = {key: value for key, value in row.items() if key in ("layer", "pool")}
    return next((other for other in rows if setting.items() <= other.items()), None)


def report(
    name: str,
    facts: Mapping[str, Any],
    found: Outcome,
    control: Outcome | None,
    pixels: Outcome | None = None,
) -> dict[str, Any]:
    """Everything of an evaluation as JSON values.

    Args:
        name: of the probe; one of several protocols has ``name`` in its protocol instead.
        facts: of the encoder, the data and how images are cut.
        found: of the encoder.
        control: of the same, untrained; its row of the same layer and setting stands as ``untrained``,
            and what the protocol takes of it alone as ``untrained_number``.
        pixels: of the images themselves.
    """
    return {
        "probe": found.protocol.get("name", name),
        **facts,
        "metric": found.metric,
        "number": found.number,
        "chosen": found.chosen,
        "chance": found.chance,
        "untrained": control and same_setting(found.number, control.by_layer),
        "untrained_number": control and control.number,
        "pixels": pixels and pixels.number,
        "best_on_test": found.best,
        "protocol": found.protocol,
        "by_layer": found.by_layer,
        "untrained_by_layer": control and control.by_layer,
        "rows": found.rows,
        "untrained_rows": control and control.rows,
    }


COLUMNS = (
    *("probe", "weights", "step", "checksum", "data", "train_split", "test_split"),
    *("train_images", "test_images", "attention", "layer", "pool", "setting", "metric", "value"),
    *("chance", "untrained", "best_on_test", "best_layer"),
)


def write(folder: Path, found: Report) -> list[Path]:
    """Writes ``PROBE.json``, and a line of ``results.csv`` unless the same is there already.

    Raises:
        UserError: they cannot be written.
    """
    file, table = folder / f"{found['probe']}.json", folder / "results.csv"
    with writing(file):
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(file, as_json(found, indent=1) + "\n")
        lines = table.read_text().splitlines() if table.exists() else [_line(COLUMNS)]
        line = _line(_columns(found))
        if line not in lines:
            replace_text(table, "\n".join([*lines, line]) + "\n")
    return [file, table]


def _columns(found: Mapping[str, Any]) -> list[Any]:
    number, metric = found["number"], found["metric"]
    best, untrained = found["best_on_test"] or {}, found["untrained"] or {}
    taken = ("layer", "pool", metric, *SCORES)
    setting = {key: value for key, value in number.items() if key not in taken}
    values = {
        **found,
        **found["protocol"],
        "layer": number.get("layer"),
        "pool": number.get("pool"),
        "setting": " ".join(f"{key}={value}" for key, value in setting.items()),
        "value": number[metric],
        "untrained": untrained.get(metric),
        "best_on_test": best.get(metric),
        "best_layer": best.get("layer"),
    }
    return [values.get(column) for column in COLUMNS]


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(["" if v is None else v for v in values])
    return text.getvalue()


def replace_text(file: Path, text: str) -> None:
    """The file has the old text or the new one, whenever the process ends."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    unfinished.write_text(text)
    unfinished.replace(file)


def as_json(found: Mapping[str, Any], indent: int | None = None) -> str:
    """At full precision."""
    return json.dumps(found, indent=indent, default=_plain)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as JSON has them."""
    return value.tolist()


def eval_folder(path: str, out: str | None) -> Path:
    """Where the results of an encoder go. Raises as :func:`folder_of`."""
    return folder_of(path, "eval", out)


def folder_of(path: str, name: str, out: str | None) -> Path:
    """Where something of some weights goes: beside them, unless another folder is given.

    Raises:
        UserError: it cannot be written.
    """
    place = Path(path)
    if out is not None:
        folder = Path(out)
    elif place.parent.name == "checkpoints":  # one of a run's
        folder = place.parent.parent / name
    else:
        folder = place / name if place.is_dir() else place.with_name(f"{place.stem}-{name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); give --out=DIR") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot be written; give --out=DIR")
    return folder
