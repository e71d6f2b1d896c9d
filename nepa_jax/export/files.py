"""Weight files, read and written one array at a time: safetensors (also in parts) and .npz."""

import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from nepa_jax.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
Stream = Iterable[tuple[str, np.ndarray]]

SAFETENSORS, NPZ, INDEX = "model.safetensors", "model.npz", "model.safetensors.index.json"
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "U8": np.uint8,
}  # fmt: skip


@dataclass(frozen=True)
class StoredArray:
    """An array on disk; ``np.asarray`` reads it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


@dataclass(frozen=True)
class Stored:
    """The arrays of a file or folder, and the text that came with them."""

    arrays: Mapping[str, StoredArray | np.ndarray]
    metadata: Mapping[str, str]


# Writing


def write_safetensors(
    folder: Path, shapes: Shapes, stream: Stream, metadata: Mapping[str, str], max_bytes: int
) -> list[str]:
    """Writes float32 arrays in the order of ``shapes``, in parts of at most ``max_bytes``.

    Returns:
        The names of the files; with several parts the last is the index.
    """
    parts = split_parts(shapes, max_bytes)
    stream = iter(stream)
    if len(parts) == 1:
        _write_part(folder / SAFETENSORS, parts[0], stream, metadata)
        return [SAFETENSORS]
    names = [f"model-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        _write_part(folder / name, part, stream, metadata)
    index = {
        "metadata": {"total_size": sum(map(_bytes, shapes.values()))},
        "weight_map": {key: name for name, part in zip(names, parts, strict=True) for key in part},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return [*names, INDEX]


def split_parts(shapes: Shapes, max_bytes: int) -> list[dict[str, tuple[int, ...]]]:
    """Consecutive arrays together until a part is full; a larger array is a part by itself."""
    parts: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if parts[-1] and size + _bytes(shape) > max_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = shape
        size += _bytes(shape)
    return parts


def _bytes(shape: tuple[int, ...]) -> int:
    return 4 * math.prod(shape)


def _write_part(
    path: Path,
    shapes: Shapes,
    stream: Iterator[tuple[str, np.ndarray]],
    metadata: Mapping[str, str],
) -> None:
    """The format: length of the header as 8 bytes, the header as JSON, the arrays' bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _bytes(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in shapes:
            file.write(next(stream)[1].data)


def write_npz(path: Path, stream: Stream) -> None:
    """An uncompressed .npz."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in stream:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


# Reading


def read_safetensors(path: Path) -> Stored:
    """Opens one file; arrays are read when asked for.

    Raises:
        UserError: the file is cut off or no safetensors file.
    """
    try:
        header, start = _read_header(path)
        metadata = header.pop("__metadata__", {})
        end = max((info["data_offsets"][1] for info in header.values()), default=0)
        arrays = {name: _stored(path, info, start) for name, info in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise UserError(
            f"{path}: is no safetensors file, or its header is damaged; get it again"
        ) from None
    if path.stat().st_size != start + end:
        raise UserError(
            f"{path}: is cut off: {path.stat().st_size:,} bytes of {start + end:,}; get it again"
        )
    return Stored(arrays, metadata)


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("longer than the file")
        return json.loads(file.read(length)), 8 + length


def _stored(path: Path, info: Mapping[str, Any], start: int) -> StoredArray:
    shape, dtype = tuple(info["shape"]), DTYPES[info["dtype"]]
    offset = start + info["data_offsets"][0]

    def read() -> np.ndarray:
        return np.fromfile(path, dtype, math.prod(shape), offset=offset).reshape(shape)

    return StoredArray(shape, read)


def read_parts(index: Path) -> Stored:
    """Opens the parts that an index names.

    Raises:
        UserError: a part is missing or damaged.
    """
    arrays: dict[str, StoredArray] = {}
    metadata: Mapping[str, str] = {}
    for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: names {name}, which is not there; get all parts")
        part = read_safetensors(index.parent / name)
        arrays |= part.arrays
        metadata = part.metadata
    return Stored(arrays, metadata)


def read_npz(path: Path) -> Stored:
    """Opens an .npz; arrays are read when asked for.

    Raises:
        UserError: the file is damaged, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                name.removesuffix(".npy"): StoredArray(
                    _npy_shape(archive, name), _npz_reader(path, name)
                )
                for name in archive.namelist()
            }
    except (zipfile.BadZipFile, ValueError):
        raise UserError(f"{path}: is no .npz file, or it is damaged; get it again") from None
    return Stored(arrays, {})


def _npy_shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        return read(file)[0]


def _npz_reader(path: Path, name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    return read
