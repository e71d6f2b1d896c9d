"""The formats, as tables: our name, their name, and what happens to the array in between.

``{layer}`` stands for the index along our leading layer axis and ``{qkv}`` for query, key or value,
the parts of our fused projection. Operations are those of ``convert.operations``. A rule applies where
our model has the parameter; a parameter no rule speaks of is an error.

``vit/pos_embed`` and ``decoder/pos_embed`` are the position tables [1 + N, D]: where a model's are
the fixed sine-cosine ones, they are no parameters here but still arrays there.
"""

from dataclasses import dataclass, replace

from nepa_jax.base.errors import UserError


@dataclass(frozen=True)
class Rule:
    """``ours`` ↔ ``theirs`` by ``operation``."""

    ours: str
    theirs: str
    operation: str = "flat"


@dataclass(frozen=True)
class Format:
    """One external layout of weights.

    ``class_position`` says whether the position table
    has a row for the class token; where it has none, that row is added to the token itself.
    ``full_qk_norms``: q/k-norms have weights and biases there even where ours have none.
    ``resampling`` is the target library's rule for position tables of another grid. ``flax``: arrays
    lie as Flax has them, in an .npz. ``library`` is what ``export --check`` runs an export in, and
    ``shipped`` are the files of ``export/torch_model`` that go with it.

    The rest is for reading. ``base`` is in front of the encoder's names, unless the encoder was saved by
    itself. ``aliases`` are (pattern, replacement): names that other versions write. ``aside`` are
    (what it is, pattern): arrays that do not bear on our model.
    """

    name: str
    rules: tuple[Rule, ...]
    class_position: bool = True
    full_qk_norms: bool = False
    resampling: str = "bicubic"  # or bicubic_antialias, linear: those of export/resize.py
    flax: bool = False
    library: str = "timm"
    shipped: tuple[str, ...] = ()
    base: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    aside: tuple[tuple[str, str], ...] = ()

    def theirs(self, ours: str) -> str | None:
        """Their name of a parameter of ours, None if there is none."""
        return next((rule.theirs for rule in self.rules if rule.ours == ours), None)

    def with_class_position(self, has: bool) -> "Format":
        """The same layout with or without the class token's row in the position table."""
        operation = "table" if has else "patch_table"
        rules = tuple(
            replace(rule, operation=operation) if rule.ours == "vit/pos_embed" else rule
            for rule in self.rules
        )
        return replace(self, rules=rules, class_position=has)


def affine(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """A norm's scale and bias."""
    return Rule(f"{ours}/scale", f"{theirs}.weight"), Rule(f"{ours}/bias", f"{theirs}.bias")


def linear(ours: str, theirs: str, operation: str = "linear") -> tuple[Rule, Rule]:
    """A linear map's kernel and bias."""
    return Rule(f"{ours}/kernel", f"{theirs}.weight", operation), Rule(
        f"{ours}/bias", f"{theirs}.bias"
    )


# SihanXU/nepa, models/vit_nepa/modeling_vit_nepa.py: pretraining and classification. Its layout has
# no absolute positions; `position_embeddings` is our addition, for the variant of the paper.
_NEPA_LAYER = "vit_nepa.encoder.layer.{layer}"
NEPA = Format(
    name="nepa",
    base="vit_nepa.",
    library="transformers",
    shipped=("configuration_nepa.py", "modeling_nepa.py"),
    rules=(
        Rule("vit/cls_token", "vit_nepa.embeddings.cls_token", "token"),
        Rule("vit/pos_embed", "vit_nepa.embeddings.position_embeddings", "table"),
        *linear("vit/patch_embed", "vit_nepa.embeddings.patch_embeddings.projection", "conv"),
        *affine("vit/blocks/norm1", f"{_NEPA_LAYER}.layernorm_before"),
        *linear("vit/blocks/attn/qkv", f"{_NEPA_LAYER}.attention.attention.{{qkv}}"),
        *affine("vit/blocks/attn/q_norm", f"{_NEPA_LAYER}.attention.attention.q_norm"),
        *affine("vit/blocks/attn/k_norm", f"{_NEPA_LAYER}.attention.attention.k_norm"),
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


# timm, timm/models/vision_transformer.py: an encoder, with or without a head.
TIMM = Format(
    name="timm",
    resampling="bicubic_antialias",
    rules=(
        Rule("vit/cls_token", "cls_token", "token"),
        Rule("vit/pos_embed", "pos_embed", "table"),
        *linear("vit/patch_embed", "patch_embed.proj", "conv"),
        *_timm_blocks("vit/blocks", "blocks"),
        Rule("vit/blocks/layer_scale1", "blocks.{layer}.ls1.gamma"),
        Rule("vit/blocks/layer_scale2", "blocks.{layer}.ls2.gamma"),
        *affine("vit/norm", "norm"),
        *affine("fc_norm", "fc_norm"),
        *linear("head", "head"),
    ),
)

# timm, timm/models/eva.py with attn_type="rope": what holds NEPA's rotary embedding, LayerScale and
# q/k-norm.
TIMM_EVA = Format(
    name="timm_eva",
    full_qk_norms=True,
    rules=(
        Rule("vit/cls_token", "cls_token", "token"),
        *linear("vit/patch_embed", "patch_embed.proj", "conv"),
        *affine("vit/blocks/norm1", "blocks.{layer}.norm1"),
        *linear("vit/blocks/attn/qkv", "blocks.{layer}.attn.qkv"),
        *affine("vit/blocks/attn/q_norm", "blocks.{layer}.attn.q_norm"),
        *affine("vit/blocks/attn/k_norm", "blocks.{layer}.attn.k_norm"),
        *linear("vit/blocks/attn/out", "blocks.{layer}.attn.proj", "linear_heads"),
        Rule("vit/blocks/layer_scale1", "blocks.{layer}.gamma_1"),
        *affine("vit/blocks/norm2", "blocks.{layer}.norm2"),
        *linear("vit/blocks/mlp/up", "blocks.{layer}.mlp.fc1"),
        *linear("vit/blocks/mlp/down", "blocks.{layer}.mlp.fc2"),
        Rule("vit/blocks/layer_scale2", "blocks.{layer}.gamma_2"),
        *affine("vit/norm", "norm"),
    ),
)

# facebookresearch/mae, models_mae.py (pretraining) and models_vit.py (classification).
MAE = Format(
    name="mae",
    shipped=("to_pth.py",),
    rules=(
        Rule("vit/cls_token", "cls_token", "token"),
        Rule("vit/pos_embed", "pos_embed", "table"),
        *linear("vit/patch_embed", "patch_embed.proj", "conv"),
        *_timm_blocks("vit/blocks", "blocks"),
        *affine("vit/norm", "norm"),
        *linear("decoder/embed", "decoder_embed"),
        Rule("decoder/pos_embed", "decoder_pos_embed", "table"),
        Rule("decoder/mask_token", "mask_token", "token"),
        *_timm_blocks("decoder/blocks", "decoder_blocks"),
        *affine("decoder/norm", "decoder_norm"),
        *linear("decoder/pred", "decoder_pred"),
        *affine("fc_norm", "fc_norm"),
        *linear("head", "head"),
    ),
)


def _transformers_blocks(ours: str, theirs: str) -> tuple[Rule, ...]:
    """Blocks under the names of the ViT family in Hugging Face Transformers."""
    layer = f"{theirs}.{{layer}}"
    return (
        *affine(f"{ours}/norm1", f"{layer}.layernorm_before"),
        *linear(f"{ours}/attn/qkv", f"{layer}.attention.attention.{{qkv}}"),
        *linear(f"{ours}/attn/out", f"{layer}.attention.output.dense", "linear_heads"),
        *affine(f"{ours}/norm2", f"{layer}.layernorm_after"),
        *linear(f"{ours}/mlp/up", f"{layer}.intermediate.dense"),
        *linear(f"{ours}/mlp/down", f"{layer}.output.dense"),
    )


_TRANSFORMERS_ASIDE = (
    ("pooler", r"^vit\.pooler\."),
    ("mask token", r"^vit\.embeddings\.mask_token$"),
    ("position ids", r"\.position_ids$"),
)
_TRANSFORMERS_ENCODER = (
    Rule("vit/cls_token", "vit.embeddings.cls_token", "token"),
    Rule("vit/pos_embed", "vit.embeddings.position_embeddings", "table"),
    *linear("vit/patch_embed", "vit.embeddings.patch_embeddings.projection", "conv"),
    *_transformers_blocks("vit/blocks", "vit.encoder.layer"),
    *affine("vit/norm", "vit.layernorm"),
)

# Hugging Face Transformers, models/vit_mae/modeling_vit_mae.py. Version 5 writes other names of the
# decoder's layers.
VIT_MAE = Format(
    name="vit_mae",
    base="vit.",
    library="transformers",
    aliases=((r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),),
    aside=_TRANSFORMERS_ASIDE,
    rules=(
        *_TRANSFORMERS_ENCODER,
        *linear("decoder/embed", "decoder.decoder_embed"),
        Rule("decoder/pos_embed", "decoder.decoder_pos_embed", "table"),
        Rule("decoder/mask_token", "decoder.mask_token", "token"),
        *_transformers_blocks("decoder/blocks", "decoder.decoder_layers"),
        *affine("decoder/norm", "decoder.decoder_norm"),
        *linear("decoder/pred", "decoder.decoder_pred"),
    ),
)

# Hugging Face Transformers, models/vit/modeling_vit.py: ViTModel, ViTForImageClassification.
VIT = Format(
    name="vit",
    base="vit.",
    library="transformers",
    aside=_TRANSFORMERS_ASIDE,
    rules=(*_TRANSFORMERS_ENCODER, *linear("head", "classifier")),
)


def _flax_linear(ours: str, theirs: str, operation: str = "same") -> tuple[Rule, Rule]:
    return Rule(f"{ours}/kernel", f"{theirs}/kernel", operation), Rule(
        f"{ours}/bias", f"{theirs}/bias", "same"
    )


def _flax_norm(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return Rule(f"{ours}/scale", f"{theirs}/scale", "same"), Rule(
        f"{ours}/bias", f"{theirs}/bias", "same"
    )


# google-research/big_vision, big_vision/models/vit.py with pool_type="tok", posemb="learn"; the aliases
# are the names of google-research/vision_transformer.
_FLAX_BLOCK = "params/Transformer/encoderblock_{layer}"
_FLAX_ATTENTION = f"{_FLAX_BLOCK}/MultiHeadDotProductAttention_0"
BIG_VISION = Format(
    name="big_vision",
    base="params/",
    aliases=(
        (r"/Transformer/posembed_input/pos_embedding$", "/pos_embedding"),
        (r"/LayerNorm_2/", "/LayerNorm_1/"),
        (r"/MlpBlock_3/", "/MlpBlock_0/"),
        (r"/MultiHeadDotProductAttention_1/", "/MultiHeadDotProductAttention_0/"),
    ),
    class_position=False,
    resampling="linear",
    flax=True,
    rules=(
        Rule("vit/cls_token", "params/cls", "token"),
        Rule("vit/pos_embed", "params/pos_embedding", "patch_table"),
        *_flax_linear("vit/patch_embed", "params/embedding", "conv_flax"),
        *_flax_norm("vit/blocks/norm1", f"{_FLAX_BLOCK}/LayerNorm_0"),
        *_flax_linear("vit/blocks/attn/qkv", f"{_FLAX_ATTENTION}/{{qkv}}"),
        *_flax_linear("vit/blocks/attn/out", f"{_FLAX_ATTENTION}/out"),
        *_flax_norm("vit/blocks/norm2", f"{_FLAX_BLOCK}/LayerNorm_1"),
        *_flax_linear("vit/blocks/mlp/up", f"{_FLAX_BLOCK}/MlpBlock_0/Dense_0"),
        *_flax_linear("vit/blocks/mlp/down", f"{_FLAX_BLOCK}/MlpBlock_0/Dense_1"),
        *_flax_norm("vit/norm", "params/Transformer/encoder_norm"),
        *_flax_linear("head", "params/head"),
    ),
)

FORMATS: dict[str, Format] = {
    table.name: table for table in (NEPA, MAE, VIT_MAE, VIT, TIMM, TIMM_EVA, BIG_VISION)
}


def known_format(name: str) -> Format:
    """Raises UserError unless there is such a format."""
    if name not in FORMATS:
        raise UserError(
            f"--format={name}: there is no such format; choose from {', '.join(FORMATS)}"
        )
    return FORMATS[name]
