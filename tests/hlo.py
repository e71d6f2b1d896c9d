"""Reads compiled programs."""

import re

KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"


def collectives(program: str) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of the results of every collective, by its name."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for result, kind in re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", program):
        shapes = re.findall(r"\w+\[([\d,]*)\]", result)
        found.setdefault(kind, []).extend(
            tuple(int(n) for n in shape.split(",") if n) for shape in shapes
        )
    return found
