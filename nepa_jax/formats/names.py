"""Names as people save them → the names a table knows: wrappers, prefixes, other versions' names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nepa_jax.base.errors import UserError
from nepa_jax.formats.files import ArrayLike
from nepa_jax.formats.tables import Format

# Of several encoders in one file the first of these is taken; averaged and older copies come later.
FIRST = ("", "model", "state_dict", "teacher")
SHOWN = 6


@dataclass(frozen=True)
class Named:
    """Arrays under a table's names, and what is left aside: the names as in the file, by kind."""

    arrays: Mapping[str, ArrayLike]
    aside: Mapping[str, Sequence[str]]

    def without(self, kind: str, names: Sequence[str]) -> "Named":
        """The same with these of the table's names left aside too."""
        if not names:
            return self
        kept = {name: array for name, array in self.arrays.items() if name not in names}
        return Named(kept, {**self.aside, kind: names})


def table_names(arrays: Mapping[str, ArrayLike], table: Format, entry: str, source: str) -> Named:
    """Finds the encoder by its patch embedding, and takes away what is in front of its names.

    Args:
        arrays: by the names in the file, those of entries joined by dots.
        table: the format.
        entry: the entry or prefix to take, "" for the usual one.
        source: for the error.

    Raises:
        UserError: there is no such entry, or several encoders and no way to choose.
    """
    anchor = table.theirs("vit/patch_embed/kernel").removeprefix(table.base)
    places = sorted(
        name.removesuffix(anchor)
        for name in arrays
        if name.endswith(anchor) and re.fullmatch(r"|.*[./]", name.removesuffix(anchor))
    )
    place = _chosen(places, table, entry, source)
    renamed: dict[str, ArrayLike] = {}
    aside: dict[str, list[str]] = {}
    for name, array in arrays.items():
        ours = _renamed(name, place, table)
        kind = _kind_aside(ours, table)
        if ours is None:
            aside.setdefault(f"outside of {place}", []).append(name)
        elif kind is not None:
            aside.setdefault(kind, []).append(name)
        else:
            renamed[ours] = array
    return Named(renamed, aside)


def _chosen(places: Sequence[str], table: Format, entry: str, source: str) -> str:
    """What is in front of the encoder's names; "" if no encoder is found."""
    found = [place for place in places if not entry or re.match(re.escape(entry) + "[./]", place)]
    if entry and not found:
        known = ", ".join(place.rstrip("./") for place in places if place) or "none"
        raise UserError(
            f"{source}#{entry}: there is no such entry with an encoder; there are {known}"
        )
    if len(found) < 2:
        return found[0] if found else ""
    for first in FIRST:
        preferred = [
            place for place in found if re.split("[./]", place.removesuffix(table.base))[0] == first
        ]
        if len(preferred) == 1 and not entry:
            return preferred[0]
    raise UserError(
        f"{source}: holds {len(found)} encoders: {', '.join(map(repr, found))}; name one, such as "
        f"{source}#{found[0].rstrip('./')}"
    )


def _renamed(name: str, place: str, table: Format) -> str | None:
    """The table's name, None for what stands outside of the encoder's place and beside it."""
    if place.endswith(table.base):
        outer, base = place.removesuffix(table.base), ""
    else:  # the encoder saved by itself
        outer, base = place, table.base
    if not name.startswith(outer):
        return None
    name = base + name.removeprefix(outer)
    for pattern, replacement in table.aliases:
        name = re.sub(pattern, replacement, name)
    return name


def _kind_aside(name: str | None, table: Format) -> str | None:
    if name is None:
        return None
    return next((kind for kind, pattern in table.aside if re.search(pattern, name)), None)


def aside_lines(aside: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each kind of what was left aside, with its number and the first names."""
    lines = []
    for kind, names in aside.items():
        more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        lines.append(f"left aside {kind} ({len(names):,} arrays): {', '.join(names[:SHOWN])}{more}")
    return lines
