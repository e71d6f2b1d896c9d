"""Weight files, read and written one array at a time: safetensors and .npz; indices of parts."""

import json
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.base.lazy import LazyArray
from nepa_jax.base.text import read_json

Shapes = Mapping[str, tuple[int, ...]]
Stream = Iterable[tuple[str, np.ndarray]]
ArrayLike = np.ndarray | LazyArray

SAFETENSORS, NPZ, INDEX = "model.safetensors", "model.npz", "model.safetensors.index.json"
# What weights may come in, by the name that is the dtype of a LazyArray here; others are never read.
FLOATS = {
    "float64": np.dtype(np.float64), "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16),
}  # fmt: skip
SAFETENSORS_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def equal(array: ArrayLike, values: np.ndarray) -> bool:
    """Whether an array holds these values, as far as its dtype can."""
    rounding = float(ml_dtypes.finfo(FLOATS[str(array.dtype)]).eps)
    return np.allclose(np.asarray(array, np.float32), values, rtol=1e-5, atol=max(1e-5, rounding))


@dataclass(frozen=True)
class Stored:
    """The arrays of a file or folder, and the text that came with them."""

    arrays: Mapping[str, ArrayLike]
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
        for name, shape in shapes.items():
            found, array = next(stream)
            if (found, array.shape) != (name, shape):  # its bytes would stand under another name
                raise RuntimeError(f"{found} {array.shape} came in place of {name} {shape}")
            file.write(array.data)


def write_npz(path: Path, stream: Stream) -> None:
    """An uncompressed .npz."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in stream:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


# Reading


def read_safetensors(path: Path) -> Stored:
    """Opens one file; arrays are read when asked for.

    The library proves the header (offsets, sizes, names of dtypes, text as metadata); reading is
    our own, because the library's maps the file, whose pages then count as our memory.

    Raises:
        UserError: the file is cut off or no safetensors file.
    """
    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: is no safetensors file, or it is damaged or cut off ({error}); get it again"
        ) from None
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    arrays = {name: _of_safetensors(path, info, 8 + length) for name, info in header.items()}
    return Stored(arrays, metadata)


def _of_safetensors(path: Path, info: Mapping[str, Any], start: int) -> LazyArray:
    shape, found = tuple(info["shape"]), info["dtype"]
    name = SAFETENSORS_FLOATS.get(found, found)
    offset = start + info["data_offsets"][0]

    def read() -> np.ndarray:
        return np.fromfile(path, FLOATS[name], math.prod(shape), offset=offset).reshape(shape)

    return LazyArray(shape, name, read)


def read_parts(index: Path, read: Callable[[Path], Stored]) -> Stored:
    """Opens the parts that an index names, each by ``read``.

    Raises:
        UserError: the index is none, or a part is missing or damaged.
    """
    arrays: dict[str, ArrayLike] = {}
    metadata: Mapping[str, str] = {}
    for name in _part_names(index):
        if not (index.parent / name).is_file():
            raise UserError(f"{index}: names {name}, which is not there; get all parts")
        part = read(index.parent / name)
        arrays |= part.arrays
        metadata = part.metadata
    return Stored(arrays, metadata)


def _part_names(index: Path) -> list[str]:
    """Raises UserError unless the index has plain names of files beside it."""
    content = read_settings(index)
    parts = content.get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise UserError(f"{index}: weight_map = {_short(parts)}: must say the file of every array; get it again")  # fmt: skip
    for array, name in parts.items():
        plain = isinstance(name, str) and name == Path(name).name != ""
        if not plain or name.endswith(".json"):
            raise UserError(f"{index}: weight_map: {array} = {_short(name)}: must be the name of a weight file in this folder; get it again")  # fmt: skip
    return sorted(set(parts.values()))


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file beside the weights; {} if there is no such file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if not path.exists():
        return {}
    try:
        return read_json(path, dict)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); allow reading") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; get it again") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def read_npz(path: Path) -> Stored:
    """Opens an .npz; arrays are read when asked for.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {
                info.filename.removesuffix(".npy"): _of_npz(path, archive, info)
                for info in archive.infolist()
            }
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, zlib.error) as error:
        raise UserError(
            f"{path}: is no .npz file, or it is damaged ({error}); get it again"
        ) from None
    return Stored(arrays, {})


def _of_npz(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> LazyArray:
    """The header is parsed here, once: NumPy's parser must not run in several threads."""
    with archive.open(info) as file:
        shape, fortran, dtype = _npy_header(file)
        start = file.tell()
    name, stored = _npy_dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if name in FLOATS and info.file_size != start + size:
        raise ValueError(f"{info.filename} has {info.file_size - start:,} bytes of {size:,}")

    def read() -> np.ndarray:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(info) as file:
                file.read(start)
                values = np.frombuffer(file.read(size), stored)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: {info.filename} is damaged ({error}); get it again") from None
        return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)

    return LazyArray(tuple(shape), name, read)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Raises ValueError if it is none."""
    parsers = {(1, 0): np.lib.format.read_array_header_1_0}
    version = np.lib.format.read_magic(file)
    try:
        return parsers.get(version, np.lib.format.read_array_header_2_0)(file)
    except (zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # Python's own parser is behind it
        raise ValueError(in_short(error)) from None


def _npy_dtype(dtype: np.dtype) -> tuple[str, np.dtype]:
    """Its name, and what its bytes are; NumPy saves bfloat16, which it does not know, as void."""
    if dtype == np.dtype("V2"):
        return "bfloat16", FLOATS["bfloat16"]
    return dtype.name, dtype
