"""What of a source is not taken: counted by kind, and named by a few of each."""

from collections import Counter
from collections.abc import Mapping

NAMED = 3  # of each kind
MAX_KINDS = 12  # that are told one by one


class LeftOut:
    """Counts what is left out by its kind, such as "hidden files". For one thread at a time."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._names: dict[str, list[str]] = {}

    def add(self, kind: str, name: str, number: int = 1) -> None:
        """Counts `number` more of a kind, of which `name` is one."""
        self._counts[kind] += number
        names = self._names.setdefault(kind, [])
        if len(names) < NAMED:
            names.append(name)

    @property
    def counts(self) -> Mapping[str, int]:
        """The number of each kind, the largest first."""
        return dict(self._counts.most_common())

    def lines(self) -> list[str]:
        """One line for each kind, with its number and some names; the rarest kinds share one."""
        kinds = list(self.counts)
        lines = [self._line(kind) for kind in kinds[:MAX_KINDS]]
        if rest := sum(self._counts[kind] for kind in kinds[MAX_KINDS:]):
            lines.append(f"{len(kinds) - MAX_KINDS} more kinds: {rest:,}")
        return lines

    def _line(self, kind: str) -> str:
        return f"{kind}: {self._counts[kind]:,}, such as {', '.join(self._names[kind])}"
