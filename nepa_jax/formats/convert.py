"""One engine that applies a format's table both ways and reports every name that does not fit."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from nepa_jax.base.errors import UserError
from nepa_jax.base.lazy import LazyArray
from nepa_jax.base.threads import ordered_map
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.formats.constants import constants
from nepa_jax.formats.files import FLOATS, ArrayLike, equal
from nepa_jax.formats.fit import Fit, Misfit
from nepa_jax.formats.tables import Format

Arrays = Mapping[str, ArrayLike]
Leaf = np.ndarray | jax.Array | LazyArray  # a parameter of ours
QKV = ("query", "key", "value")
LARGE_BYTES = 2**26  # what is converted in several threads is smaller


class Operation(NamedTuple):
    """To their layout; and back, given the shape of ours."""

    export: Callable[[np.ndarray], np.ndarray]
    restore: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def contiguous(array: np.ndarray) -> np.ndarray:
    """An array in the order of its axes; jax transposes twice as fast as NumPy."""
    if array.flags.c_contiguous:
        return array
    return np.asarray(jax.device_put(array, jax.local_devices()[0]))


def _restore_reshaped(theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return theirs.reshape(shape)


def _restore_transposed(theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return contiguous(theirs.T).reshape(shape)


def _restore_patches(theirs: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.pad(theirs.reshape(-1, shape[-1]), ((1, 0), (0, 0)))


def operations(patch_size: int) -> dict[str, Operation]:
    """The closed set. Ours: kernels [in …, out …]; PyTorch's: weights [out, in] with y = x Wᵀ + b.

    A patch kernel is [P·P·C, D] here, [D, C, P, P] in PyTorch and [P, P, C, D] in Flax.
    """
    p = patch_size
    return {
        "same": Operation(lambda a: a, _restore_reshaped),
        "flat": Operation(lambda a: a.reshape(-1), _restore_reshaped),
        "token": Operation(lambda a: a.reshape(1, 1, -1), _restore_reshaped),
        "table": Operation(lambda a: a[None], _restore_reshaped),
        "patch_table": Operation(lambda a: a[None, 1:], _restore_patches),
        "linear": Operation(lambda a: a.reshape(a.shape[0], -1).T, _restore_transposed),
        "linear_heads": Operation(lambda a: a.reshape(-1, a.shape[-1]).T, _restore_transposed),
        "conv": Operation(
            lambda a: a.reshape(p, p, -1, a.shape[-1]).transpose(3, 2, 0, 1),
            lambda a, shape: a.transpose(2, 3, 1, 0).reshape(shape),
        ),
        "conv_flax": Operation(lambda a: a.reshape(p, p, -1, a.shape[-1]), _restore_reshaped),
    }


class Entry(NamedTuple):
    """One array of theirs: the slice of ours that it holds."""

    theirs: str
    ours: str
    index: tuple[Any, ...]
    operation: Operation

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Of theirs, from the shape of our whole leaf; allocates nothing."""
        return self.operation.export(np.broadcast_to(np.float32(0), ours)[self.index]).shape

    def counted_from(self, layer: int) -> "Entry":
        """Of a stack that begins with this layer."""
        return self._replace(index=(self.index[0] - layer, *self.index[1:]))


# Ours to theirs


def stream_arrays(model: nnx.Module, table: Format) -> Iterator[tuple[str, np.ndarray]]:
    """A model's parameters under their names and layouts, float32, contiguous, one after the other.

    Weights on disk are read as they are needed.

    Raises:
        UserError: the format has no place for one of the parameters.
        Damaged: a weight on disk is not what was saved.
    """
    fixed = {name: constant.values() for name, constant in constants(model, table).items()}
    leaves = named_leaves(model) | fixed
    if not table.class_position:
        leaves = fold_class_position(leaves)
    pieces = [
        piece
        for name, parts in _by_leaf(model, table).items()
        for piece in _pieces(leaves[name], parts)
    ]
    small = all(piece.nbytes <= LARGE_BYTES for piece in pieces)
    for exported in ordered_map(_Piece.exported, pieces, num_threads=3 if small else 1):
        yield from exported


class _Piece(NamedTuple):
    """Consecutive rows of one of our leaves, and the entries whose indices count from the first."""

    leaf: Leaf
    rows: slice
    parts: list[Entry]

    @property
    def nbytes(self) -> int:
        start, stop, _ = self.rows.indices(self.leaf.shape[0])
        return (stop - start) * math.prod(self.leaf.shape[1:]) * self.leaf.dtype.itemsize

    def exported(self) -> list[tuple[str, np.ndarray]]:
        values = np.asarray(self.leaf[self.rows], np.float32)
        return [
            (part.theirs, contiguous(part.operation.export(values[part.index])))
            for part in self.parts
        ]


def _pieces(leaf: Leaf, parts: list[Entry]) -> Iterator[_Piece]:
    """Of a stack of layers on disk those layers that are read together; else the whole leaf."""
    together = getattr(leaf, "rows_together", 0)
    if not (together and isinstance(parts[0].index[0], int)):
        yield _Piece(leaf, slice(None), parts)
        return
    for start in range(0, leaf.shape[0], together):
        layers = range(start, start + together)
        inside = [part.counted_from(start) for part in parts if part.index[0] in layers]
        yield _Piece(leaf, slice(start, layers.stop), inside)


def array_shapes(model: nnx.Module, table: Format) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what :func:`stream_arrays` gives, in its order."""
    shapes = _shapes(model, table)
    return {entry.theirs: entry.shape(shapes[entry.ours]) for entry in entries(model, table)}


def fold_class_position(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the class token's own position to the token: the same sum."""
    token = np.asarray(leaves["vit/cls_token"]) + np.asarray(leaves["vit/pos_embed"])[0]
    return {**leaves, "vit/cls_token": token}


# Theirs to ours


def fill(model: nnx.Module, table: Format, arrays: Arrays) -> nnx.Module:
    """The model with what the arrays have, made when asked for; others keep their own value."""
    parts = _by_leaf(model, table)

    def filled(name: str, leaf: Any) -> Any:
        if not all(entry.theirs in arrays for entry in parts[name]):
            return leaf
        made = partial(_filled, leaf.shape, parts[name], arrays)
        return LazyArray(leaf.shape, np.dtype(np.float32), made)

    leaves = {name: filled(name, leaf) for name, leaf in named_leaves(model).items()}
    return with_leaves(model, leaves)


def _filled(shape: tuple[int, ...], parts: list[Entry], arrays: Arrays) -> np.ndarray:
    """One of our leaves, made of all of theirs that are parts of it."""
    target = _empty(shape)

    def fill_in(entry: Entry) -> None:
        part = target[entry.index]
        part[...] = entry.operation.restore(np.asarray(arrays[entry.theirs]), part.shape)

    for _ in ordered_map(fill_in, parts, num_threads=2):
        pass
    return target


def _empty(shape: tuple[int, ...]) -> np.ndarray:
    """At an address that jax takes over on CPUs; others it copies."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


def compare(model: nnx.Module, table: Format, arrays: Arrays) -> Fit:
    """Lists which names fit, without reading any but those that are constants here."""
    shapes, fixed = _shapes(model, table), constants(model, table)
    wanted = {entry.theirs: entry for entry in entries(model, table)}
    fit = Fit(unexpected=sorted(set(arrays) - set(wanted)))
    for name, entry in wanted.items():
        shape = entry.shape(shapes[entry.ours])
        if name not in arrays:
            fit.missing += [] if entry.ours in fixed else [name]
        elif tuple(arrays[name].shape) != shape:
            fit.misshapen.append(Misfit(name, tuple(arrays[name].shape), shape))
        elif str(arrays[name].dtype) not in FLOATS:
            fit.unreadable.append((name, str(arrays[name].dtype)))
        elif entry.ours in fixed and not equal(
            arrays[name], entry.operation.export(fixed[entry.ours].values()[entry.index])
        ):
            fit.unexpected.append(f"{name} (other than the constant this model has there)")
        else:
            fit.mapped.append((name, entry.ours))
    return fit


# Both ways


def entries(model: nnx.Module, table: Format) -> list[Entry]:
    """Every array of theirs that this model's parameters and constants become.

    Raises:
        UserError: one of them has no rule.
    """
    shapes = _shapes(model, table)
    rules = {rule.ours: rule for rule in table.rules}
    homeless = sorted(set(shapes) - set(rules))
    if homeless:
        raise UserError(
            f"format {table.name!r} has no place for {', '.join(homeless)}; choose another format"
        )
    known = operations(model.vit.config.patch_size)
    return [
        Entry(theirs, name, index, known[rules[name].operation])
        for name, shape in shapes.items()
        for theirs, index in _slices(rules[name].theirs, shape)
    ]


def _by_leaf(model: nnx.Module, table: Format) -> dict[str, list[Entry]]:
    parts: dict[str, list[Entry]] = {}
    for entry in entries(model, table):
        parts.setdefault(entry.ours, []).append(entry)
    return parts


def _slices(theirs: str, shape: tuple[int, ...]) -> list[tuple[str, tuple[Any, ...]]]:
    """Their names and the index into ours of each: layers in front, q/k/v third from the end."""
    layers = range(shape[0]) if "{layer}" in theirs else [slice(None)]
    parts = list(enumerate(QKV)) if "{qkv}" in theirs else [(slice(None), "")]
    return [
        (
            theirs.format(layer=layer, qkv=name),
            (layer, ..., part, slice(None), slice(None)) if name else (layer,),
        )
        for layer in layers
        for part, name in parts
    ]


def _shapes(model: nnx.Module, table: Format) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(leaf.shape)
        for name, leaf in (named_leaves(model) | constants(model, table)).items()
    }
