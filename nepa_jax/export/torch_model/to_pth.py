"""Writes the weights beside this file as a .pth, which the official MAE scripts read.

    python to_pth.py [mae.pth]

Needs torch and safetensors. The state dict stands under ``model``, as in the official files. What
the weights' own header says of them (number of heads, normalisation, …) goes under ``nepa_jax``,
so that ``nepa-jax import`` reads the file without guessing.
"""

import sys
from pathlib import Path

import torch
from safetensors import safe_open


def to_pth(folder: Path, out: Path) -> None:
    """Collects all ``model*.safetensors`` of a folder in one file."""
    state: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for part in sorted(folder.glob("model*.safetensors")):
        with safe_open(part, framework="pt") as opened:
            state |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata |= opened.metadata() or {}
    torch.save({"model": state, "nepa_jax": metadata}, out)
    print(f"{len(state)} arrays: {out}")


if __name__ == "__main__":
    to_pth(Path(__file__).parent, Path(sys.argv[1] if len(sys.argv) > 1 else "mae.pth"))
