"""Runs exported folders in the libraries they are meant for, and keeps every hidden state."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict
from safetensors.torch import load_file
from torch import nn

from nepa_jax.formats.configs import floored_ratio
from nepa_jax.objectives.encoder import is_causal


class Opened(NamedTuple):
    """A model in evaluation mode, its parts, and how to call it."""

    blocks: Sequence[nn.Module]
    norm: nn.Module | None
    call: Callable[[torch.Tensor], Any]


@torch.no_grad()
def hidden_states(
    folder: Path, name: str, config: ConfigDict, pixels: np.ndarray
) -> dict[str, np.ndarray]:
    """Every hidden state of an exported model, float32 [B, 1 + N, D] each.

    Args:
        folder: the exported folder.
        name: its format.
        config: of the exported model.
        pixels: float32 [B, C, H, W], normalised.

    Returns:
        ``embedding``, ``layer 1`` …, and ``norm`` if there is a final one.
    """
    model = OPENERS[name](folder, config)
    states: dict[str, torch.Tensor] = {}
    model.blocks[0].register_forward_pre_hook(lambda _, inputs: states.update(embedding=inputs[0]))
    for index, block in enumerate(model.blocks, start=1):
        block.register_forward_hook(_keep(states, f"layer {index}"))
    if model.norm is not None:
        model.norm.register_forward_hook(_keep(states, "norm"))
    model.call(torch.from_numpy(pixels))
    return {name: state.numpy() for name, state in states.items()}


def _keep(states: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        states[name] = output[0] if isinstance(output, tuple) else output

    return hook


def _layers(vit: nn.Module) -> Sequence[nn.Module]:
    """Transformers' list of blocks; its place differs between versions 4 and 5."""
    return vit.layers if hasattr(vit, "layers") else vit.encoder.layer


def _open_nepa(folder: Path, config: ConfigDict) -> Opened:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    return Opened(model.encoder.layer, model.layernorm, model)


def _open_vit(folder: Path, config: ConfigDict) -> Opened:
    from transformers import ViTModel

    model = ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    return Opened(_layers(model), model.layernorm, model)


def _open_vit_mae(folder: Path, config: ConfigDict) -> Opened:
    """Nothing is masked and the patches stay in order."""
    from transformers import ViTMAEModel

    model = ViTMAEModel.from_pretrained(folder, mask_ratio=0.0).eval()

    def call(pixels: torch.Tensor) -> Any:
        count = model.embeddings.patch_embeddings.num_patches
        return model(pixels, noise=torch.arange(count, dtype=torch.float32).expand(len(pixels), -1))

    return Opened(_layers(model), model.layernorm, call)


def _open_timm(folder: Path, config: ConfigDict) -> Opened:
    import timm

    return _of_timm(timm.create_model(f"local-dir:{folder}", pretrained=True).eval())


def _open_timm_eva(folder: Path, config: ConfigDict) -> Opened:
    import timm

    norm = partial(nn.LayerNorm, eps=config.model.norm_eps)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, norm_layer=norm).eval()
    forward = partial(model.forward_features, is_causal=is_causal(config))
    return Opened(model.blocks, model.norm, forward)


def _open_mae(folder: Path, config: ConfigDict) -> Opened:
    """The encoder's names are timm's, which can hold them without the official code."""
    model = _plain_timm(config)
    arrays = {
        name: array
        for path in sorted(folder.glob("*.safetensors"))
        for name, array in load_file(path).items()
    }
    names = model.state_dict().keys()
    model.load_state_dict({name: array for name, array in arrays.items() if name in names})
    return _of_timm(model.eval())


def _open_big_vision(folder: Path, config: ConfigDict) -> Opened:
    """timm reads big_vision's files."""
    model = _plain_timm(config, no_embed_class=True)
    model.load_pretrained(str(folder / "model.npz"))
    return _of_timm(model.eval())


def _plain_timm(config: ConfigDict, no_embed_class: bool = False) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    shape = config.model
    return VisionTransformer(
        img_size=tuple(shape.image_size), patch_size=shape.patch_size, in_chans=shape.in_channels,
        embed_dim=shape.embed_dim, depth=shape.depth, num_heads=shape.num_heads,
        mlp_ratio=floored_ratio(shape.mlp_ratio, shape.embed_dim), no_embed_class=no_embed_class,
        num_classes=config.objective.get("num_classes", 0), final_norm=shape.final_norm,
        global_pool="token" if shape.final_norm else "avg",
        norm_layer=partial(nn.LayerNorm, eps=shape.norm_eps), qkv_bias=shape.qkv_bias,
    )  # fmt: skip


def _of_timm(model: nn.Module) -> Opened:
    norm = None if isinstance(model.norm, nn.Identity) else model.norm
    return Opened(model.blocks, norm, model.forward_features)


OPENERS: dict[str, Callable[[Path, ConfigDict], Opened]] = {
    "nepa": _open_nepa, "mae": _open_mae, "vit_mae": _open_vit_mae, "vit": _open_vit,
    "timm": _open_timm, "timm_eva": _open_timm_eva, "big_vision": _open_big_vision,
}  # fmt: skip
