"""The rooms of the package, what each may import, and a picture of what each does import.

    python tests/house.py          draws docs/house.svg

The table is the design: test_imports.py holds the code to it, and the picture to the code.
"""

import ast
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "nepa_jax"
PICTURE = ROOT / "docs" / "house.svg"

# From the ground up: each room, and each module that others may have without its room, with what it may
# import beside all that these may import themselves.
ROOMS: dict[str, tuple[str, ...]] = {
    "base": (),
    "data.settings": ("base",),
    "data": ("data.settings",),
    "hosts": ("base",),
    "mesh": ("base",),
    "optim": ("base",),
    "models.sizes": ("base",),
    "models": ("models.sizes", "mesh"),
    "config": ("data.settings", "models.sizes"),
    "objectives": ("models",),
    "step": ("objectives", "optim"),
    "formats": ("objectives", "config"),
    "checkpoint": ("step", "config", "hosts"),
    "plan": ("step", "config"),
    "loading": ("checkpoint", "formats", "data"),
    "evals": ("loading",),
    "run.log": ("base",),
    "run.metrics": ("plan", "run.log"),
    "run": ("evals", "run.metrics"),
    "train": ("run",),
    "report": ("run",),
    "export": ("evals", "run.metrics"),
    "visualize": ("evals", "run.metrics"),
    "bench": ("train", "export"),
    "demo": ("train", "report", "export", "visualize"),
    "scaling": ("report", "visualize"),
    "cli": ("bench", "demo", "scaling"),
    "__main__": ("cli",),
}

Graph = Mapping[str, frozenset[str]]


def may_import(room: str) -> frozenset[str]:
    """All that the table opens to a room."""
    opened = frozenset(ROOMS[room])
    return opened.union(*map(may_import, opened))


# What the code does


def module_of(path: Path) -> str:
    """A file's dotted name below the package; a room's ``__init__`` is the room, the package's ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


@cache
def files() -> dict[str, Path]:
    """Every module of the package; what goes into exported folders stands alone there."""
    found = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    return {name: path for name, path in found.items() if "torch_model" not in path.parts}


def room_of(module: str) -> str:
    """The longest entry of the table that a module is in; "" if it stands in none."""
    names = (name for name in ROOMS if f"{module}.".startswith(f"{name}."))
    return max(names, key=len, default="")


def imported(tree: ast.AST) -> set[str]:
    """Dotted names in the import statements of a piece of code, at any depth."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own(names: Iterable[str]) -> frozenset[str]:
    """Those that are modules of this package, or stand in one, as its modules; the root is ``""``."""
    below = {name.removeprefix("nepa_jax").lstrip(".") for name in names if _is_own(name)}
    return frozenset(name if name in files() else name.rpartition(".")[0] for name in below)


def _is_own(name: str) -> bool:
    return f"{name}.".startswith("nepa_jax.")


@cache
def import_graph() -> Graph:
    """What every module imports of the others, also late in a function or for type checkers alone."""
    trees = {name: ast.parse(path.read_text()) for name, path in files().items()}
    return {name: own(imported(tree)) - {name} for name, tree in trees.items()}


# The picture

WIDTH, BOX, GAP, LINE = 720, 158, 18, 13


def room_graph() -> dict[str, set[str]]:
    """What every room imports of the others, with modules of their own kept in their rooms."""
    rooms: dict[str, set[str]] = {}
    for module, targets in import_graph().items():
        room = room_of(module).partition(".")[0]
        if room not in ("", "__main__"):
            reached = {room_of(target).partition(".")[0] for target in targets}
            rooms.setdefault(room, set()).update(reached - {room, ""})
    return rooms


def least(graph: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that no way over others stands for."""

    def below(room: str) -> set[str]:
        return graph[room].union(*map(below, graph[room]))

    return [
        (room, to)
        for room in ROOMS
        for to in sorted(graph.get(room, ()))
        if not any(to in below(other) for other in graph[room])
    ]


def heights(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Of every room the length of its longest way to the ground."""
    found: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        found[room] = 1 + max((found[to] for to in graph[room]), default=-1)
    return found


Way = tuple[str, ...]  # a room, the floors in between that its arrow passes, and where it leads


def ways(graph: Mapping[str, set[str]]) -> list[Way]:
    """Every arrow, with a place of its own on each floor that it passes."""
    height = heights(graph)
    return [
        (room, *(f"{room}>{to}@{level}" for level in range(height[room] - 1, height[to], -1)), to)
        for room, to in least(graph)
    ]


def places(graph: Mapping[str, set[str]]) -> dict[str, tuple[float, int]]:
    """The middle across, and the floor, of every room and every place that an arrow passes.

    Each moves towards those it is joined to, as far as its neighbours on the floor let it.
    """
    height = heights(graph)
    joined: dict[str, list[str]] = {room: [] for room in ROOMS if room in graph}
    level = dict(height)
    for way in ways(graph):
        for above, under in pairwise(way):
            level.setdefault(under, level[above] - 1)
            joined.setdefault(above, []).append(under)
            joined.setdefault(under, []).append(above)
    across = dict.fromkeys(joined, WIDTH / 2)
    for _ in range(60):
        for floor in range(max(level.values()), -1, -1):
            here = [name for name in joined if level[name] == floor]
            wanted = {n: sum(across[o] for o in joined[n]) / max(len(joined[n]), 1) for n in here}
            across |= spread(sorted(here, key=wanted.get), wanted)
    return {name: (across[name], level[name]) for name in joined}


def spread(names: Sequence[str], wanted: Mapping[str, float]) -> dict[str, float]:
    """Side by side in this order, about where they want to be, inside of the picture."""
    widths = [(GAP if ">" in name else BOX) + GAP for name in names]
    middles, edge = [], 0.0
    for name, width in zip(names, widths, strict=True):
        middles.append(max(wanted[name], edge + width / 2))
        edge = middles[-1] + width / 2
    over = sum(m - wanted[n] for m, n in zip(middles, names, strict=True)) / len(names)
    low = min(middles[0] - widths[0] / 2, over)
    shift = max(low, edge - WIDTH)
    return {name: middle - shift for name, middle in zip(names, middles, strict=True)}


def words_of(room: str) -> list[str]:
    """What stands in a room, in lines that fit its box."""
    inside = [name.split(".") for name in files() if name.startswith(f"{room}.")]
    words = dict.fromkeys(parts[1] if len(parts) == 2 else f"{parts[1]}/" for parts in inside)
    lines = [""]
    for word in [word for word in words if f"{word}/" not in words] or [f"{room}.py"]:
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if len(longer) <= 27 else [*lines, word]
    return lines


def drawn() -> str:
    """The picture as SVG text: a box for each room, an arrow for what it imports."""
    graph, place = room_graph(), places(room_graph())
    size = {room: 26 + LINE * len(words_of(room)) for room in graph}
    tops, tall, top = {}, {}, 14
    for floor in range(max(level for _, level in place.values()), -1, -1):
        here = [name for name, (_, level) in place.items() if level == floor]
        tops[floor], tall[floor] = top, max(size.get(name, 0) for name in here)
        top += tall[floor] + 34
    stops = {
        name: (x, tops[level], size.get(name, tall[level])) for name, (x, level) in place.items()
    }
    lines = [_arrow([stops[name] for name in way]) for way in ways(graph)]
    boxes = [_box(room, stops[room][0] - BOX / 2, stops[room][1], size[room]) for room in size]
    return HEAD.format(width=WIDTH, height=top - 20) + "".join([*lines, *boxes]) + "</svg>\n"


HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    'font-family="sans-serif" font-size="10.5">\n'
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#777"/></marker></defs>\n'
    '<rect width="{width}" height="{height}" fill="white"/>\n'
)


def _box(room: str, x: float, y: float, height: float) -> str:
    lines = "".join(
        f'<text x="{x + 8:.0f}" y="{y + 31 + LINE * number:.0f}" fill="#555">{line}</text>\n'
        for number, line in enumerate(words_of(room))
    )
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX}" height="{height:.0f}" rx="5" fill="#f4f6fa" '
        f'stroke="#3b5b8c"/>\n<text x="{x + 8:.0f}" y="{y + 16:.0f}" font-size="13" '
        f'font-weight="bold">{room}</text>\n{lines}'
    )


def _arrow(stops: Sequence[tuple[float, float, float]]) -> str:
    """From the bottom of the first box over the places in between to the top of the last."""
    (x, y, size), *others = stops
    path = f"M{x:.0f} {y + size:.0f}"
    y += size
    for to_x, to_y, size in others:
        half = (y + to_y) / 2
        path += f" C{x:.0f} {half:.0f} {to_x:.0f} {half:.0f} {to_x:.0f} {to_y:.0f}"
        x, y = to_x, to_y + size
        path += f" V{y:.0f}" if (to_x, to_y, size) != others[-1] else ""
    return f'<path d="{path}" fill="none" stroke="#999" marker-end="url(#tip)"/>\n'


if __name__ == "__main__":
    PICTURE.write_text(drawn())
    print(f"done: {PICTURE}")
