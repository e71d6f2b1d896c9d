"""Where weights are: what a user writes for it, which file of a folder it is, and what opens that."""

from pathlib import Path
from typing import NamedTuple

from nepa_jax.base.errors import UserError
from nepa_jax.formats.files import (
    INDEX,
    NPZ,
    SAFETENSORS,
    Stored,
    read_npz,
    read_parts,
    read_safetensors,
)
from nepa_jax.formats.read_pth import read_pth
from nepa_jax.formats.tables import FORMATS

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
# The names that libraries look for, in the order in which one is taken.
WEIGHTS = (
    SAFETENSORS, INDEX, NPZ,
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


class Place(NamedTuple):
    """``PATH``, ``PATH#ENTRY`` or ``PATH:FORMAT`` in parts; "" for what is not said."""

    path: Path
    entry: str
    format: str


def parse_place(text: str) -> Place:
    """Reads a place; a path that exists is taken as it is."""
    path, colon, name = text.rpartition(":")
    if Path(text).exists() or not colon or name not in FORMATS:
        path, name = text, ""
    if Path(path).exists():
        return Place(Path(path), "", name)
    file, _, entry = path.partition("#")
    return Place(Path(file), entry, name)


def find_weights(path: Path) -> Path:
    """The weight file of a folder, or the file itself.

    Raises:
        UserError: there is none, or there are several that no library has a name for.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: does not exist; give a folder or a weight file")
    found = [path / name for name in WEIGHTS if (path / name).is_file()]
    others = [p for p in sorted(path.iterdir()) if _is_weights(p) and p not in found]
    if found or len(others) == 1:
        return (found or others)[0]
    if others:
        names = ", ".join(p.name for p in others[:8])
        raise UserError(f"{path}: holds {len(others)} weight files: {names}; give one of them")
    raise UserError(
        f"{path}: holds no {', '.join(WEIGHTS)}, nor any other .safetensors, .npz or .pth file; give "
        "the folder that does"
    )


def _is_weights(path: Path) -> bool:
    return path.suffix in (".safetensors", ".npz", *TORCH_SUFFIXES) and path.is_file()


def read_weights(path: Path) -> Stored:
    """Opens a weight file by its ending.

    Raises:
        UserError: it is damaged, or of another kind.
    """
    try:
        if path.name.endswith(".index.json"):
            return read_parts(path, read_weights)
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        if path.suffix == ".npz":
            return read_npz(path)
        if path.suffix in TORCH_SUFFIXES:
            return read_pth(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); allow reading") from None
    raise UserError(
        f"{path}: weights come as .safetensors, .npz or {', '.join(TORCH_SUFFIXES)}; this is none of them"
    )
