"""Reads the state dict of a .pth file without running anything that is in it."""

import argparse
import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch

from nepa_jax.errors import UserError


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name: of the entry ``model`` if there is one, as in MAE's files, else of the whole.

    ``argparse.Namespace`` is let through: MAE's training code saves its options as one.

    Raises:
        UserError: the file holds code or other objects, is damaged, or has no arrays.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: refused: it holds more than arrays, and reading that could run code; "
            "ask its author for a .safetensors file"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError):
        raise UserError(f"{path}: is no .pth file, or it is damaged; get it again") from None
    state = saved.get("model", saved) if isinstance(saved, dict) else {}
    arrays = {
        name: value.numpy() for name, value in state.items() if isinstance(value, torch.Tensor)
    }
    if not arrays:
        raise UserError(f"{path}: holds no named arrays; give a file with a state dict")
    return arrays
