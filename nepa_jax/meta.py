"""What a checkpoint says of itself: its run, and dtype, shape and checksum of every array."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

import nepa_jax
from nepa_jax.checksums import checksums
from nepa_jax.config import from_json, to_json

Leaves = Mapping[str, Any]  # arrays, or their shapes, by name
Shapes = dict[str, tuple[str, tuple[int, ...]]]  # dtype and shape by name


class Damaged(Exception):
    """A checkpoint that is not what was saved; the message says in which way."""


@dataclass(frozen=True)
class Provenance:
    """What a checkpoint says of the run it belongs to."""

    config: ConfigDict
    fingerprint: str  # of the data set
    versions: Mapping[str, str]

    @classmethod
    def of(cls, config: ConfigDict, fingerprint: str) -> "Provenance":
        versions = {
            "nepa_jax": nepa_jax.__version__,
            "jax": jax.__version__,
            "orbax": version("orbax-checkpoint"),
        }
        return cls(config, fingerprint, versions)


def shapes_of(leaves: Leaves) -> Shapes:
    return {name: (str(leaf.dtype), tuple(leaf.shape)) for name, leaf in leaves.items()}


class Held(NamedTuple):
    """One part of the arrays: what they are, and the checksum of each."""

    shapes: Shapes
    sums: np.ndarray  # uint32 [leaves, 2], in the order of the sorted names

    @classmethod
    def of(cls, leaves: Leaves) -> "Held":
        return cls(shapes_of(leaves), np.asarray(checksums(leaves)))

    def to_json(self) -> dict[str, list[Any]]:
        """Dtype, shape and checksum by name."""
        rows = zip(sorted(self.shapes), self.sums.tolist(), strict=True)
        return {name: [*self.shapes[name], row] for name, row in rows}

    @classmethod
    def from_json(cls, saved: Mapping[str, list[Any]]) -> "Held":
        shapes = {name: (dtype, tuple(shape)) for name, (dtype, shape, _) in saved.items()}
        sums = np.array([saved[name][2] for name in sorted(saved)], np.uint32)
        return cls(shapes, sums)


NONE_HELD = Held({}, np.zeros((0, 2), np.uint32))


@dataclass(frozen=True)
class Meta:
    """The part of a checkpoint that is text."""

    provenance: Provenance
    arrays: Mapping[str, Held]  # by part

    @classmethod
    def of(cls, provenance: Provenance, parts: Mapping[str, Leaves]) -> "Meta":
        return cls(provenance, {part: Held.of(leaves) for part, leaves in parts.items()})

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values, with a digest of it."""
        saved = self.provenance
        content = {
            "config": to_json(saved.config),
            "fingerprint": saved.fingerprint,
            "versions": dict(saved.versions),
            "arrays": {part: held.to_json() for part, held in self.arrays.items()},
        }
        return content | {"sha256": _digest(content)}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Meta":
        """Raises Damaged if these are not the values that were saved."""
        content = {key: value for key, value in saved.items() if key != "sha256"}
        if saved.get("sha256") != _digest(content):
            raise Damaged("meta is not what was saved")
        provenance = Provenance(
            from_json(content["config"]), content["fingerprint"], content["versions"]
        )
        arrays = {part: Held.from_json(held) for part, held in content["arrays"].items()}
        return cls(provenance, arrays)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
