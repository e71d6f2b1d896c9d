"""Opens weights from anywhere: finds the files, their format, and the config they belong to."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nepa_jax.config import from_json
from nepa_jax.errors import UserError
from nepa_jax.export import encoder, files
from nepa_jax.export.configs import CONFIG_TABLES, MAE, SUPERVISED, import_config, run_config
from nepa_jax.export.convert import Arrays
from nepa_jax.export.tables import FORMATS, Format
from nepa_jax.models.posemb import sincos_table
from nepa_jax.models.sizes import SIZES

PROVENANCE = "provenance.json"
MODEL_TYPES = {
    "vit_nepa": "nepa",
    "vit_mae": "vit_mae",
    "vit": "vit",
}  # of Transformers' config.json


@dataclass(frozen=True)
class Source:
    """Weights on disk and what is known of them."""

    path: Path
    format: Format
    config: ConfigDict  # resolved; of a model that these arrays should fit
    arrays: Arrays
    metadata: Mapping[str, str]  # of our own exports, else empty


def known_format(name: str) -> Format:
    """Raises UserError unless there is such a format."""
    if name not in FORMATS:
        raise UserError(
            f"--format={name}: there is no such format; choose from {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def open_source(path: str, name: str | None = None, config: ConfigDict | None = None) -> Source:
    """Opens a folder or a weight file; arrays are read when asked for.

    Args:
        path: a folder with weights and config, or a .safetensors, .npz or .pth file.
        name: a format; None: what the files themselves say.
        config: a resolved run config to use instead of the files' own.

    Raises:
        UserError: nothing to open there, damaged files, or no way to tell format or config.
    """
    if name is not None:
        known_format(name)
    weights = find_weights(Path(path))
    stored = read_weights(weights)
    metadata = stored.metadata if "nepa_jax.format" in stored.metadata else _sidecar(weights.parent)
    name = name or metadata.get("nepa_jax.format") or _guess_format(weights)
    table = known_format(name)
    config = config or _find_config(weights, name, stored.arrays, metadata)
    return Source(weights, table, config, stored.arrays, metadata)


def find_weights(path: Path) -> Path:
    """The weight file of a folder, or the file itself."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"{path}: does not exist; give a folder or a weight file")
    names = [files.SAFETENSORS, files.INDEX, files.NPZ, *sorted(p.name for p in path.glob("*.pth"))]
    found = [path / name for name in names if (path / name).is_file()]
    if not found:
        raise UserError(
            f"{path}: holds no {files.SAFETENSORS}, {files.INDEX}, {files.NPZ} or .pth file; "
            "give the folder that does"
        )
    return found[0]


def read_weights(path: Path) -> files.Stored:
    """Opens a weight file by its ending."""
    if path.name.endswith(".index.json"):
        return files.read_parts(path)
    if path.suffix == ".safetensors":
        return files.read_safetensors(path)
    if path.suffix == ".npz":
        return files.read_npz(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return files.Stored(_read_pth(path), {})
    raise UserError(f"{path}: weights come as .safetensors, .npz or .pth; this is none of them")


def _read_pth(path: Path) -> dict[str, np.ndarray]:
    try:
        from nepa_jax.export.torch_model.read_pth import read_pth
    except ImportError:
        raise UserError(f"{path}: reading .pth files needs PyTorch; pip install torch") from None
    return read_pth(path)


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError if it is damaged; {} if there is none."""
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path}: is no JSON; get it again") from None


def _sidecar(folder: Path) -> dict[str, str]:
    return read_json(folder / PROVENANCE)


def _guess_format(weights: Path) -> str:
    theirs = read_json(weights.parent / "config.json")
    if theirs.get("model_type") in MODEL_TYPES:
        return MODEL_TYPES[theirs["model_type"]]
    if "architecture" in theirs:
        return "timm_eva" if theirs["architecture"].startswith("eva") else "timm"
    raise UserError(
        f"{weights}: does not say its format; add --format, one of {', '.join(FORMATS)}"
    )


def _find_config(
    weights: Path, name: str, arrays: Arrays, metadata: Mapping[str, str]
) -> ConfigDict:
    if metadata.get("nepa_jax.format") == name:
        return from_json(metadata["nepa_jax.model_config"])
    theirs = _their_config(weights.parent / "config.json")
    if CONFIG_TABLES[name].keys and theirs:
        config = import_config(theirs, name, str(weights.parent / "config.json"))
    elif CONFIG_TABLES[name].keys and name not in ("timm",):
        raise UserError(
            f"{weights}: there is no config.json beside it; put the one that belongs to it there"
        )
    else:
        config = infer_config(name, arrays, str(weights))
    _set_positions(config, FORMATS[name], arrays)
    _set_pixels(config, weights.parent)
    return config


def _their_config(path: Path) -> dict[str, Any]:
    """Their config.json; timm keeps the model's arguments in a section of it."""
    theirs = read_json(path)
    if "model_args" in theirs:
        return {**theirs, **theirs["model_args"], "architectures": [theirs["architecture"]]}
    return theirs


def _set_positions(config: ConfigDict, table: Format, arrays: Arrays) -> None:
    """Position tables are parameters here unless they are the sine-cosine ones."""
    name = _their_names(table).get("vit/pos_embed")
    if name is None or name not in arrays or config.model.posemb == "learned":
        return
    height, width = config.model.image_size
    grid = height // config.model.patch_size, width // config.model.patch_size
    fixed = sincos_table(grid, config.model.embed_dim)
    found = np.asarray(arrays[name])[0]
    patches = found[1:] if table.class_position else found
    same = patches.shape == fixed.shape and np.allclose(patches, fixed, atol=1e-5)
    if same and (not table.class_position or not found[0].any()):
        config.model.posemb = "sincos"
    elif patches.shape == fixed.shape:
        config.model.posemb = "learned"


def _set_pixels(config: ConfigDict, folder: Path) -> None:
    """The normalisation that the preprocessing file speaks of."""
    processor = read_json(folder / "preprocessor_config.json")
    timm = read_json(folder / "config.json").get("pretrained_cfg", {})
    mean = processor.get("image_mean") or timm.get("mean")
    std = processor.get("image_std") or timm.get("std")
    if mean and std:
        config.model.pixel_mean, config.model.pixel_std = tuple(mean), tuple(std)


# Layouts without a config file


def _their_names(table: Format) -> dict[str, str]:
    return {rule.ours: rule.theirs for rule in table.rules}


def infer_config(name: str, arrays: Arrays, source: str) -> ConfigDict:
    """The config that the arrays' shapes tell; heads from the table of sizes, else 64 wide.

    Raises:
        UserError: these are not the format's names.
    """
    names = _their_names(FORMATS[name])
    try:
        values = _inferred_sizes(name, names, arrays)
    except KeyError as error:
        raise UserError(f"{source} does not fit format {name!r}: missing {error.args[0]}") from None
    has_norm = names["vit/norm/scale"] in arrays
    values |= {"model.final_norm": has_norm, "model.posemb": "sincos"}
    if "blocks.0.ls1.gamma" in arrays:
        values["model.layer_scale_init"] = 1e-5
    config = run_config(CONFIG_TABLES[name], values | _inferred_objective(names, arrays))
    if name == "big_vision":
        config.model.pixel_mean = config.model.pixel_std = (0.5, 0.5, 0.5)
    return config


def _inferred_sizes(name: str, names: Mapping[str, str], arrays: Arrays) -> dict[str, Any]:
    kernel = arrays[names["vit/patch_embed/kernel"]].shape
    patch, channels, dim = (
        (kernel[0], *kernel[2:]) if name == "big_vision" else (kernel[2], kernel[1], kernel[0])
    )
    layer = names["vit/blocks/norm1/scale"]
    depth = sum(layer.format(layer=i) in arrays for i in range(1000))
    rows = arrays[names["vit/pos_embed"]].shape[1] - FORMATS[name].class_position
    query = names["vit/blocks/attn/qkv/bias"].format(layer=0, qkv="query")
    heads = arrays[query].shape[0] if name == "big_vision" else _heads(dim)
    return {
        "model.embed_dim": dim, "model.depth": depth, "model.num_heads": heads,
        "model.mlp_dim": arrays[names["vit/blocks/mlp/up/bias"].format(layer=0)].shape[0],
        "model.patch_size": patch, "model.in_channels": channels,
        "model.side": math.isqrt(rows) * patch,
    }  # fmt: skip


def _heads(dim: int) -> int:
    return next(
        (int(size["num_heads"]) for size in SIZES.values() if size["embed_dim"] == dim),
        max(dim // 64, 1),
    )


def _inferred_objective(names: Mapping[str, str], arrays: Arrays) -> dict[str, Any]:
    embed = names.get("decoder/embed/kernel")
    if embed in arrays:
        layer = names["decoder/blocks/norm1/scale"]
        return {
            "objective.name": MAE,
            "objective.decoder_embed_dim": arrays[embed].shape[0],
            "objective.decoder_depth": sum(layer.format(layer=i) in arrays for i in range(1000)),
            "objective.decoder_num_heads": 16,  # released models_mae.py, for every size
        }
    if names["head/bias"] in arrays:
        pool = "mean" if names.get("fc_norm/scale") in arrays else "cls"
        classes = arrays[names["head/bias"]].shape[0]
        return {
            "objective.name": SUPERVISED, "objective.pool": pool,
            "objective.num_classes": classes, "objective.causal": False,
        }  # fmt: skip
    return {"objective.name": encoder.NAME, "objective.causal": False}
