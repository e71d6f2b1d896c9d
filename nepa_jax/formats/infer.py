"""The config that arrays' shapes tell, for layouts without a config file, and what they do not tell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.sections import shown
from nepa_jax.formats.config_tables import CONFIG_TABLES, MAE, SUPERVISED
from nepa_jax.formats.configs import known_values, run_config
from nepa_jax.formats.convert import Arrays
from nepa_jax.formats.tables import Format
from nepa_jax.models.sizes import SIZES
from nepa_jax.objectives import encoder

# Of widths beside those of SIZES that are not 64 channels a head, in timm.
OTHER_HEADS = {1152: 16, 1664: 16}
MAX_LAYERS = 1000
# Arguments of timm's models that change the function and not the names, with what our model does.
TIMM_PARTS: dict[str, tuple[Any, ...]] = {
    "act_layer": (None, "gelu"), "norm_layer": (None, "layernorm"), "mlp_layer": (None,),
    "block_fn": (None,), "attn_layer": (None,), "embed_layer": (None,),
}  # fmt: skip


TANH = "big_vision's MLP takes the tanh form of GELU, ours the exact one: features differ by about 1e-3"
POOLS = {"mean": "avg", "cls": "token"}  # ours, and timm's global_pool


@dataclass(frozen=True)
class Inferred:
    """A resolved run config, the keys in it that nothing told, and lines for the user."""

    config: ConfigDict
    guesses: Sequence[str] = ()  # they have the usual values
    notes: Sequence[str] = ()


def infer_config(table: Format, arrays: Arrays, theirs: Mapping[str, Any], source: str) -> Inferred:
    """The config of arrays under a table's names.

    Args:
        table: the format.
        arrays: all of them.
        theirs: what a config file says of them, which may be little.
        source: for the error.

    Raises:
        UserError: these are not the format's names, or the file says what our model does not do.
    """
    for key, known in TIMM_PARTS.items():
        if theirs.get(key) not in known:
            raise UserError(f"{source}: {key} = {shown(theirs[key])} is not supported")
    try:
        told = {**_sizes(table, arrays), **_objective(table, arrays, theirs)}
    except KeyError as error:
        raise UserError(
            f"{source} does not fit format {table.name!r}: missing {error.args[0]}"
        ) from None
    except IndexError:
        raise UserError(
            f"{source} does not fit format {table.name!r}: its arrays have other numbers of axes"
        ) from None
    usual = {**CONFIG_TABLES[table.name].assumed, **_usual(table, told)}
    said = known_values(table.name, theirs)
    if "global_pool" in theirs:
        usual.pop("objective.pool", None)
    config = run_config(CONFIG_TABLES[table.name], {**told, **usual, **said}, source)
    guesses = [
        "model.image_size" if key == "model.side" else key for key in usual if key not in said
    ]
    return Inferred(config, guesses, [TANH] if table.flax else [])


def _shape(table: Format, arrays: Arrays, ours: str, **index: Any) -> tuple[int, ...]:
    """Raises KeyError with their name if it is not there."""
    return tuple(arrays[table.theirs(ours).format(**index)].shape)


def _has(table: Format, arrays: Arrays, ours: str, **index: Any) -> bool:
    name = table.theirs(ours)
    return name is not None and name.format(**index) in arrays


def _depth(table: Format, arrays: Arrays, blocks: str) -> int:
    return sum(_has(table, arrays, f"{blocks}/norm1/scale", layer=i) for i in range(MAX_LAYERS))


def _sizes(table: Format, arrays: Arrays) -> dict[str, Any]:
    kernel = _shape(table, arrays, "vit/patch_embed/kernel")
    patch, channels, dim = (kernel[0], kernel[2], kernel[3]) if table.flax else (kernel[2], kernel[1], kernel[0])  # fmt: skip
    scaled = _has(table, arrays, "vit/blocks/layer_scale1", layer=0)
    sizes = {
        "model.embed_dim": dim, "model.depth": _depth(table, arrays, "vit/blocks"),
        "model.mlp_dim": _shape(table, arrays, "vit/blocks/mlp/up/bias", layer=0)[0],
        "model.patch_size": patch, "model.in_channels": channels,
        "model.posemb": "sincos",
        "model.final_norm": _has(table, arrays, "vit/norm/scale"),
        "model.qkv_bias": _has(table, arrays, "vit/blocks/attn/qkv/bias", layer=0, qkv="query"),
        "model.layer_scale_init": 1e-5 if scaled else None,
    }  # fmt: skip
    if table.flax:  # whose kernels are split into heads
        sizes["model.num_heads"] = _shape(table, arrays, "vit/blocks/attn/qkv/kernel", layer=0, qkv="query")[1]  # fmt: skip
    rows = _shape(table, arrays, "vit/pos_embed")[1] - table.class_position
    return {**sizes, "model.side": math.isqrt(rows) * patch}


def _objective(table: Format, arrays: Arrays, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A head that pools in a way of its own is none of ours: the encoder alone is taken."""
    if _has(table, arrays, "decoder/embed/kernel"):
        return {
            "objective.name": MAE,
            "objective.decoder_embed_dim": _shape(table, arrays, "decoder/embed/kernel")[0],
            "objective.decoder_depth": _depth(table, arrays, "decoder/blocks"),
            "objective.decoder_mlp_dim":
                _shape(table, arrays, "decoder/blocks/mlp/up/bias", layer=0)[0],
        }  # fmt: skip
    pool = "mean" if _has(table, arrays, "fc_norm/scale") else "cls"
    if _has(table, arrays, "head/bias") and theirs.get("global_pool") in (None, POOLS[pool]):
        return {
            "objective.name": SUPERVISED, "objective.pool": pool, "objective.causal": False,
            "objective.num_classes": _shape(table, arrays, "head/bias")[0],
        }  # fmt: skip
    return {"objective.name": encoder.NAME, "objective.causal": False}


def _usual(table: Format, told: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes do not tell: the values of the released codes."""
    usual: dict[str, Any] = {"model.num_heads": _heads(told["model.embed_dim"])}
    usual |= {"model.norm_eps": 1e-6, "model.side": told["model.side"]}
    if told.get("objective.pool") == "cls":
        usual["objective.pool"] = "cls"
    if told["objective.name"] == MAE:
        usual |= {"objective.mask_ratio": 0.75, "objective.norm_pix_loss": True}
        usual["objective.decoder_num_heads"] = (
            16 if told["objective.decoder_embed_dim"] % 16 == 0 else 1
        )
    return {
        key: value for key, value in usual.items() if key != "model.num_heads" or key not in told
    }


def _heads(dim: int) -> int:
    known = {size["embed_dim"]: int(size["num_heads"]) for size in SIZES.values()} | OTHER_HEADS
    return known.get(dim, max(dim // 64, 1))
