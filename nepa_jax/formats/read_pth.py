"""Reads the tensors of a .pth file without running anything that is in it."""

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.base.lazy import LazyArray
from nepa_jax.formats.files import Stored

METADATA = "nepa_jax"  # the entry of our own files that is text by name


def read_pth(path: Path) -> Stored:
    """Every tensor by its whole name: one in an entry ``model`` has ``model.`` in front.

    Tensors are converted to NumPy when asked for. ``argparse.Namespace`` is let through: MAE's
    training code saves its options as one.

    Raises:
        UserError: there is no PyTorch; or the file holds code or other objects, is damaged, or has no
            named tensors.
    """
    torch = _torch(path)
    saved = _load(torch, path)
    arrays = {name: _stored(torch, tensor) for name, tensor in _tensors(torch, saved)}
    if not arrays:
        raise UserError(f"{path}: holds no named tensors; give a file with a state dict")
    metadata = saved.get(METADATA, {})
    texts = metadata.items() if isinstance(metadata, Mapping) else ()
    return Stored(arrays, {k: v for k, v in texts if isinstance(k, str) and isinstance(v, str)})


def _torch(path: Path) -> Any:
    needs = f"{path}: reading {path.suffix} files needs PyTorch"
    try:
        import torch
    except ImportError:
        raise UserError(f"{needs}; pip install torch") from None
    except Exception as error:  # of its own libraries
        raise UserError(f"{needs}, which cannot be imported here: {in_short(error)}") from None
    return torch


def _load(torch: Any, path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")
            return torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: it holds more than tensors, or is damaged; reading anything else could "
            "run code; ask its author for a .safetensors file"
        ) from None
    except Exception as error:  # the unpickler raises errors of any kind
        raise UserError(
            f"{path}: is no .pth file, or it is damaged ({in_short(error)}); get it again"
        ) from None


def _tensors(torch: Any, value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors in dicts in dicts, under their keys joined by dots."""
    if not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        if isinstance(inner, torch.Tensor):
            yield f"{prefix}{key}", inner
        else:
            yield from _tensors(torch, inner, f"{prefix}{key}.")


def _stored(torch: Any, tensor: Any) -> LazyArray:
    dtype = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    name = dtype if plain else f"{dtype} ({tensor.layout} on {tensor.device.type})"

    def read() -> np.ndarray:
        values = tensor.detach()
        return (values.float() if dtype == "bfloat16" else values).numpy()

    return LazyArray(tuple(tensor.shape), name, read)
