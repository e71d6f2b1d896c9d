"""Class names: in one Unicode form, in one order, and how those of two splits differ."""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from nepa_jax.base.errors import UserError

NAMED = 3  # of each difference
ID_LIKE = 0.9  # this share of all values are different ones: they name images, not classes
MIN_VALUES = 20


def normal(name: str) -> str:
    """The composed form of a name: macOS writes é as two characters, all others as one."""
    return unicodedata.normalize("NFC", name)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The class names by label: sorted, by value if all are whole numbers."""
    found = set(names)
    if all(name.isascii() and name.isdigit() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def are_ids(values: Sequence[str]) -> bool:
    """Whether values are nearly all different, as those of classes are not."""
    return len(values) >= MIN_VALUES and len(set(values)) > ID_LIKE * len(values)


def told_forms(names: Iterable[str]) -> list[str]:
    """One line for each class whose name is there in several Unicode forms."""
    counts = Counter(normal(name) for name in set(names))
    return [
        f"class {name!r} is there in {count} Unicode forms, which are taken as one"
        for name, count in counts.items()
        if count > 1
    ]


def labels_in(known: Sequence[str], new: Sequence[str], split: str, out: str) -> list[int]:
    """The label that each class of a new split has in a set with the classes `known`.

    Raises UserError if the classes are others.
    """
    places = {normal(name): label for label, name in enumerate(known)}
    names = [normal(name) for name in new]
    if set(names) != set(places):
        raise UserError(
            f"split {split!r} has other classes than {out} ({len(new)} and {len(known)}): "
            f"{_difference(set(places), set(names))}; name them alike, or prepare it into "
            "another --out"
        )
    return [places[name] for name in names]


def _difference(known: set[str], new: set[str]) -> str:
    folded = {name.casefold(): name for name in known - new}
    alike = [
        (name, folded[key]) for name in sorted(new - known) if (key := name.casefold()) in folded
    ]
    told = {name for pair in alike for name in pair}
    parts = [f"{a!r} and {b!r} differ in case only" for a, b in alike[:NAMED]]
    parts += _named(new - known - told, "only the split has {}")
    parts += _named(known - new - told, "the split lacks {}")
    return ", ".join(parts)


def _named(names: Collection[str], words: str) -> list[str]:
    shown = ", ".join(map(repr, sorted(names)[:NAMED]))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return [words.format(shown + more)] if names else []
