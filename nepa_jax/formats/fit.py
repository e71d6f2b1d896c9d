"""How the names and shapes of weights fit those of a model."""

from dataclasses import dataclass, field
from typing import NamedTuple

from nepa_jax.base.errors import UserError
from nepa_jax.formats.files import FLOATS


class Misfit(NamedTuple):
    """An array of another shape than the model's."""

    name: str
    found: tuple[int, ...]
    expected: tuple[int, ...]


@dataclass
class Fit:
    """How two sets of names fit."""

    mapped: list[tuple[str, str]] = field(default_factory=list)  # (theirs, ours)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[Misfit] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # name, dtype

    @property
    def complete(self) -> bool:
        """Every name on both sides found its partner."""
        return not (self.missing or self.unexpected or self.misshapen or self.unreadable)

    def require_complete(self, source: str) -> None:
        """Raises UserError unless complete."""
        problems = [f"missing {name}" for name in self.missing]
        problems += [f"unexpected {name}" for name in self.unexpected]
        self._raise(source, self._array_problems() + problems)

    def require_arrays(self, source: str) -> None:
        """Raises UserError if an array has another shape or is of no use: nothing mends that."""
        self._raise(source, self._array_problems())

    def _array_problems(self) -> list[str]:
        names: dict[str, list[str]] = {}
        for name, dtype in self.unreadable:
            names.setdefault(dtype, []).append(name)
        dtypes = [
            f"{len(found)} arrays, such as {found[0]}, are of dtype {dtype}, and weights must be "
            + ", ".join(FLOATS)
            for dtype, found in names.items()
        ]
        return dtypes + [
            f"{name} has shape {found}, expected {wanted}" for name, found, wanted in self.misshapen
        ]

    def _raise(self, source: str, problems: list[str]) -> None:
        if problems:
            shown = "; ".join(problems[:8]) + (
                f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            )
            raise UserError(f"{source} does not fit the model: {shown}")
