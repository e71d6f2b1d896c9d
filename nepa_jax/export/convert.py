"""One engine that applies a format's table both ways and reports every name that does not fit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from nepa_jax.errors import UserError
from nepa_jax.export.tables import Format, Rule
from nepa_jax.models.posemb import sincos_table
from nepa_jax.trees import named_leaves, with_leaves

Arrays = Mapping[str, np.ndarray]


class Operation(NamedTuple):
    """To their layout; and back, given the shape of ours."""

    export: Callable[[np.ndarray], np.ndarray]
    restore: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def _restore_reshaped(theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return theirs.reshape(shape)


def _restore_transposed(theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return theirs.T.reshape(shape)


def operations(patch_size: int) -> dict[str, Operation]:
    """The closed set. Ours: kernels [in …, out …]; theirs: weights [out, in] with y = x Wᵀ + b.

    A patch kernel is [P·P·C, D] here and [D, C, P, P] there.
    """
    p = patch_size
    return {
        "flat": Operation(lambda a: a.reshape(-1), _restore_reshaped),
        "token": Operation(lambda a: a.reshape(1, 1, -1), _restore_reshaped),
        "table": Operation(lambda a: a[None], _restore_reshaped),
        "linear": Operation(lambda a: a.reshape(a.shape[0], -1).T, _restore_transposed),
        "linear_heads": Operation(lambda a: a.reshape(-1, a.shape[-1]).T, _restore_transposed),
        "conv": Operation(
            lambda a: a.reshape(p, p, -1, a.shape[-1]).transpose(3, 2, 0, 1),
            lambda a, shape: a.transpose(2, 3, 1, 0).reshape(shape),
        ),
    }


class Entry(NamedTuple):
    """One array of theirs: the slice of ours that it holds."""

    theirs: str
    ours: str
    index: tuple[Any, ...]
    operation: Operation


@dataclass
class Report:
    """How two sets of names fit; ``misshapen`` holds (name, found shape, expected shape)."""

    mapped: list[tuple[str, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def require_complete(self, source: str) -> None:
        """Raises UserError unless every name on both sides found its partner."""
        problems = [f"missing {name}" for name in self.missing]
        problems += [f"unexpected {name}" for name in self.unexpected]
        problems += [f"{name} has shape {found}, expected {wanted}" for name, found, wanted in self.misshapen]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise UserError(f"{source} does not fit the model: {shown}")


def export_arrays(model: nnx.Module, table: Format) -> dict[str, np.ndarray]:
    """A model's parameters under their names and layouts, float32, contiguous.

    Raises:
        UserError: the format has no place for one of the parameters.
    """
    leaves = named_leaves(model)
    arrays = {
        entry.theirs: entry.operation.export(np.asarray(leaves[entry.ours])[entry.index])
        for entry in entries(model, table)
    }
    arrays |= {name: array for name, array in fixed_positions(model, table).items() if name not in arrays}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def import_arrays(model: nnx.Module, table: Format, arrays: Arrays, source: str) -> nnx.Module:
    """The model (its leaves may be shapes alone) with parameters taken from their arrays.

    Raises:
        UserError: a name is missing, unexpected or of another shape; ``source`` says where.
    """
    leaves = named_leaves(model)
    report = compare(model, table, arrays)
    report.require_complete(source)
    ours = {name: np.empty(leaf.shape, np.float32) for name, leaf in leaves.items()}
    for entry in entries(model, table):
        target = ours[entry.ours]
        target[entry.index] = entry.operation.restore(arrays[entry.theirs], target[entry.index].shape)
    return with_leaves(model, ours)


def compare(model: nnx.Module, table: Format, arrays: Arrays) -> Report:
    """Lists which names fit, without converting anything large."""
    leaves = named_leaves(model)
    fixed = fixed_positions(model, table)
    report = Report()
    wanted = {}
    for entry in entries(model, table):
        ours = np.broadcast_to(np.float32(0), leaves[entry.ours].shape)[entry.index]
        wanted[entry.theirs] = (entry.ours, entry.operation.export(ours).shape)
    for name, (ours, shape) in wanted.items():
        if name not in arrays:
            report.missing.append(name)
        elif arrays[name].shape != shape:
            report.misshapen.append((name, arrays[name].shape, shape))
        else:
            report.mapped.append((name, ours))
    for name in set(arrays) - set(wanted):
        if name not in fixed or not np.allclose(arrays[name], fixed[name], atol=1e-5):
            report.unexpected.append(name)
    return report


def entries(model: nnx.Module, table: Format) -> list[Entry]:
    """Every array of theirs that this model's parameters become.

    Raises:
        UserError: a parameter has no rule.
    """
    leaves = named_leaves(model)
    rules = {rule.ours: rule for rule in table.rules}
    homeless = sorted(set(leaves) - set(rules))
    if homeless:
        raise UserError(
            f"format {table.name!r} has no place for {', '.join(homeless)}; choose another format"
        )
    known = operations(model.vit.config.patch_size)
    return [
        Entry(theirs, name, index, known[rules[name].operation])
        for name, leaf in leaves.items()
        for theirs, index in _slices(rules[name].theirs, leaf.shape, table.qkv)
    ]


def _slices(
    theirs: str, shape: tuple[int, ...], qkv: tuple[str, str, str]
) -> list[tuple[str, tuple[Any, ...]]]:
    """Their names and the index into ours of each: layers in front, q/k/v third from the end."""
    layers = range(shape[0]) if "{layer}" in theirs else [slice(None)]
    parts = enumerate(qkv) if "{qkv}" in theirs else [(slice(None), "")]
    return [
        (theirs.format(layer=layer, qkv=name), (layer, ..., part, slice(None), slice(None)) if name else (layer,))
        for part, name in parts
        for layer in layers
    ]


def fixed_positions(model: nnx.Module, table: Format) -> dict[str, np.ndarray]:
    """Their constant position tables, [1, 1 + N, D] with a zero row for the class token."""
    tables = {}
    for name, owner in table.positions:
        module = getattr(model, owner, None)
        if module is not None and (owner == "decoder" or module.config.posemb == "sincos"):
            positions = sincos_table(model.vit.config.grid, module.config.embed_dim)
            tables[name] = np.pad(positions, ((1, 0), (0, 0)))[None]
    return tables
