"""Writes the weights beside this file as a .pth, which the official MAE scripts read.

    python to_pth.py [mae.pth]

Needs torch and safetensors. The state dict stands under ``model``, as in the official files.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def to_pth(folder: Path, out: Path) -> None:
    """Collects all ``model*.safetensors`` of a folder in one file."""
    state: dict[str, torch.Tensor] = {}
    for part in sorted(folder.glob("model*.safetensors")):
        state |= load_file(part)
    torch.save({"model": state}, out)
    print(f"{len(state)} arrays: {out}")


if __name__ == "__main__":
    to_pth(Path(__file__).parent, Path(sys.argv[1] if len(sys.argv) > 1 else "mae.pth"))
