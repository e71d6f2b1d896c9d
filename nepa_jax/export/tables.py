"""The formats, as tables: our name, their name, and what happens to the array in between.

``{layer}`` stands for the index along our leading layer axis and ``{qkv}`` for one of the three
parts of our fused projection. Operations are those of convert.OPERATIONS. A rule applies where our
model has the parameter; a parameter no rule speaks of is an error.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """``ours`` ↔ ``theirs`` by ``operation``."""

    ours: str
    theirs: str
    operation: str = "flat"


@dataclass(frozen=True)
class Format:
    """One external layout of weights.

    ``qkv`` names the parts ``{qkv}`` stands for. ``positions`` names the entries that hold a fixed
    sine-cosine table there and nothing here, with the owner of the table's width.
    """

    name: str
    rules: tuple[Rule, ...]
    qkv: tuple[str, str, str] = ("q", "k", "v")
    positions: tuple[tuple[str, str], ...] = ()


def affine(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """A norm's scale and bias."""
    return Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")


def linear(ours: str, theirs: str, operation: str = "linear") -> tuple[Rule, Rule]:
    """A linear map's kernel and bias."""
    return Rule(f"{ours}/kernel", f"{theirs}.weight", operation), Rule(f"{ours}/bias", f"{theirs}.bias")


_NEPA_LAYER = "vit_nepa.encoder.layer.{layer}"

# SihanXU/nepa, models/vit_nepa/modeling_vit_nepa.py: pretraining and classification.
NEPA = Format(
    name="nepa",
    qkv=("query", "key", "value"),
    rules=(
        Rule("vit/cls_token", "vit_nepa.embeddings.cls_token", "token"),
        *linear("vit/patch_embed", "vit_nepa.embeddings.patch_embeddings.projection", "conv"),
        *affine("vit/blocks/norm1", f"{_NEPA_LAYER}.layernorm_before"),
        *linear("vit/blocks/attn/qkv", f"{_NEPA_LAYER}.attention.attention.{{qkv}}"),
        Rule("vit/blocks/attn/q_norm/scale", f"{_NEPA_LAYER}.attention.attention.q_norm.weight"),
        Rule("vit/blocks/attn/k_norm/scale", f"{_NEPA_LAYER}.attention.attention.k_norm.weight"),
        *linear("vit/blocks/attn/out", f"{_NEPA_LAYER}.attention.output.dense", "linear_heads"),
        Rule("vit/blocks/layer_scale1", f"{_NEPA_LAYER}.layer_scale.lambda1"),
        *affine("vit/blocks/norm2", f"{_NEPA_LAYER}.layernorm_after"),
        *linear("vit/blocks/mlp/up", f"{_NEPA_LAYER}.intermediate.up_proj"),
        *linear("vit/blocks/mlp/gate", f"{_NEPA_LAYER}.intermediate.gate_proj"),
        *linear("vit/blocks/mlp/down", f"{_NEPA_LAYER}.output.dense"),
        Rule("vit/blocks/layer_scale2", f"{_NEPA_LAYER}.output.layer_scale.lambda1"),
        *affine("vit/norm", "vit_nepa.layernorm"),
        *affine("fc_norm", "fc_norm"),
        *linear("head", "classifier"),
    ),
)


def _timm_blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Blocks under timm's names, which MAE's code uses: one fused qkv matrix."""
    block = f"{theirs}.{{layer}}"
    return (
        *affine(f"{ours}/norm1", f"{block}.norm1"),
        *linear(f"{ours}/attn/qkv", f"{block}.attn.qkv"),
        *linear(f"{ours}/attn/out", f"{block}.attn.proj", "linear_heads"),
        *affine(f"{ours}/norm2", f"{block}.norm2"),
        *linear(f"{ours}/mlp/up", f"{block}.mlp.fc1"),
        *linear(f"{ours}/mlp/down", f"{block}.mlp.fc2"),
    )


# facebookresearch/mae, models_mae.py (pretraining) and models_vit.py (classification).
MAE = Format(
    name="mae",
    positions=(("pos_embed", "vit"), ("decoder_pos_embed", "decoder")),
    rules=(
        Rule("vit/cls_token", "cls_token", "token"),
        Rule("vit/pos_embed", "pos_embed", "table"),
        *linear("vit/patch_embed", "patch_embed.proj", "conv"),
        *_timm_blocks("vit/blocks", "blocks"),
        *affine("vit/norm", "norm"),
        *linear("decoder/embed", "decoder_embed"),
        Rule("decoder/mask_token", "mask_token", "token"),
        *_timm_blocks("decoder/blocks", "decoder_blocks"),
        *affine("decoder/norm", "decoder_norm"),
        *linear("decoder/pred", "decoder_pred"),
        *affine("fc_norm", "fc_norm"),
        *linear("head", "head"),
    ),
)

FORMATS: dict[str, Format] = {table.name: table for table in (NEPA, MAE)}
