"""The commands that make a run and what is known of it again."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nepa_jax.base.text import printable


def commands_of(
    workdir: Path, config: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]
) -> list[dict[str, str]]:
    """What each is for, and the command itself, for a shell.

    Args:
        workdir: of the run.
        config: of the run, by dotted key.
        reports: of its evaluations.
    """
    place, again = _quoted(workdir), _quoted(f"{workdir}-again")
    labelled = str(config.get("objective.name", "")).endswith((".supervised", ".segment"))
    verb = "finetune" if labelled else "pretrain"
    found = [
        ("Go on", f"nepa-jax {verb} --config={place} --workdir={place}"),
        ("Train it again", f"nepa-jax {verb} --config={place} --workdir={again}"),
    ]
    if (workdir / "DONE").exists() or not config:
        found = found[1:] if config else []
    data = config.get("data.path")
    if data and not reports:
        found.append(("Evaluate", f"nepa-jax eval all {place} --data={_quoted(data)}"))
    for report in reports:
        probe, weights = _quoted(report["probe"]), _quoted(report["weights"])
        command = f"nepa-jax eval {probe} {weights} --data={_quoted(report['data'])}"
        found.append((f"Evaluate: {report['probe']}", command))
    if data:
        found.append(("Pictures", f"nepa-jax visualize {place} --data={_quoted(data)}"))
    found.append(("This page", f"nepa-jax report {place} --out=report.html"))
    found.append(("This page while it trains", f"nepa-jax report {place} --serve"))
    return [{"what": printable(what), "command": printable(command)} for what, command in found]


def _quoted(word: Any) -> str:
    return shlex.quote(str(word))
