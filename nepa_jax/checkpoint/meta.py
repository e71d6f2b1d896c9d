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

from nepa_jax.base.version import __version__
from nepa_jax.checkpoint.checksums import checksums
from nepa_jax.config import from_json, to_json

Leaves = Mapping[str, Any]  # arrays, or their shapes, by name


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
            "nepa_jax": __version__,
            "jax": jax.__version__,
            "orbax": version("orbax-checkpoint"),
        }
        return cls(config, fingerprint, versions)


class LeafMeta(NamedTuple):
    """What meta says of one leaf."""

    dtype: str
    shape: tuple[int, ...]
    sums: tuple[int, int]  # see checksums.py

    @classmethod
    def of(cls, leaf: Any, sums: np.ndarray) -> "LeafMeta":
        return cls(str(leaf.dtype), tuple(leaf.shape), tuple(sums.tolist()))

    @classmethod
    def from_json(cls, saved: list[Any]) -> "LeafMeta":
        dtype, shape, sums = saved
        return cls(dtype, tuple(shape), tuple(sums))

    def fits(self, leaf: Any) -> bool:
        """Whether ``leaf``, an array or its shape, is of this dtype and shape."""
        return (self.dtype, self.shape) == (str(leaf.dtype), tuple(leaf.shape))


def described(leaves: Leaves) -> dict[str, LeafMeta]:
    """Every leaf, by name; all hosts must ask."""
    sums = np.asarray(checksums(leaves))
    return {
        name: LeafMeta.of(leaves[name], pair)
        for name, pair in zip(sorted(leaves), sums, strict=True)
    }


@dataclass(frozen=True)
class Meta:
    """The part of a checkpoint that is text."""

    provenance: Provenance
    leaves: Mapping[str, Mapping[str, LeafMeta]]  # by part and name

    @classmethod
    def of(cls, provenance: Provenance, parts: Mapping[str, Leaves]) -> "Meta":
        return cls(provenance, {part: described(leaves) for part, leaves in parts.items()})

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values, with a digest of it."""
        saved = self.provenance
        content = {
            "config": to_json(saved.config),
            "fingerprint": saved.fingerprint,
            "versions": dict(saved.versions),
            "arrays": {part: dict(leaves) for part, leaves in self.leaves.items()},
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
        leaves = {
            part: {name: LeafMeta.from_json(row) for name, row in rows.items()}
            for part, rows in content["arrays"].items()
        }
        return cls(provenance, leaves)


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
