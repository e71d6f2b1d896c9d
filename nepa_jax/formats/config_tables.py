"""Their config files, as tables of key pairs: one :class:`ConfigTable` for each format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nepa_jax.objectives import encoder

NEPA, MAE, SUPERVISED = (f"nepa_jax.objectives.{name}" for name in ("nepa", "mae", "supervised"))
REQUIRED = object()


class Same(NamedTuple):
    """Stands for the value of another key of ours."""

    key: str


class Not(NamedTuple):
    """Stands for every value but this one."""

    value: Any


@dataclass(frozen=True)
class Key:
    """``ours`` ↔ ``theirs``.

    ``values``: the pairs (ours, theirs) that are written differently; ``default``: what their library
    takes where the file does not say it, REQUIRED if it must.
    """

    ours: str
    theirs: str
    values: tuple[tuple[Any, Any], ...] = ()
    default: Any = REQUIRED

    def export(self, value: Any) -> Any:
        return next((theirs for ours, theirs in self.values if ours == value), value)

    def restore(self, value: Any) -> Any:
        return next((ours for ours, theirs in self.values if theirs == value), value)


@dataclass(frozen=True)
class Task:
    """What a file of the format can be: its class there, our objective, and the keys of both."""

    architecture: str
    ours: Mapping[str, Any]  # keys of ours with what fits this task
    keys: tuple[Key, ...] = ()
    theirs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigTable:
    """One format's config. ``ours`` and ``theirs`` hold the keys that are not free, and their value;
    ``assumed`` what their file does not say. ``by_shape``: nor does it say all of ``keys``, and what
    is missing is told by the arrays' shapes."""

    recipe: str  # gives the rest of our config, should training go on
    keys: tuple[Key, ...]
    tasks: tuple[Task, ...]
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    square: bool = False  # its library knows square images alone
    by_shape: bool = False


_NO_NEPA_PARTS = {
    "model.mlp": "gelu",
    "model.qk_norm_bias": False,
    "model.rope_base": None,
    "model.qk_norm": False,
    "model.layer_scale_init": None,
    "model.posemb": Not("none"),
}
_SIZES = (
    Key("model.embed_dim", "hidden_size"),
    Key("model.depth", "num_hidden_layers"),
    Key("model.num_heads", "num_attention_heads"),
    Key("model.mlp_dim", "intermediate_size"),
    Key("model.side", "image_size"),
    Key("model.patch_size", "patch_size"),
    Key("model.in_channels", "num_channels"),
    Key("model.norm_eps", "layer_norm_eps"),
    Key("model.qkv_bias", "qkv_bias", default=True),
)
_NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
}
# Of two that are one there the first is taken: the values of a sine-cosine table tell what it is.
_POSITIONS = (("none", False), ("sincos", True), ("learned", True))
_ENCODER = {"objective.name": encoder.NAME, "objective.causal": False}
_BY_CLASS, _BY_MEAN = (
    {"objective.name": SUPERVISED, "objective.pool": pool, "objective.causal": False}
    for pool in ("cls", "mean")
)
_ROTARY = {"model.rope_base": Not(None)}

NEPA_CONFIG = ConfigTable(
    recipe="nepa.py",
    keys=(
        *_SIZES,
        Key("model.gated", "use_gated_mlp", default=False),
        Key("model.activation", "hidden_act", default="gelu"),
        Key("model.rope_base", "rope_theta"),
        Key("model.rope_shift", "pos_embed_shift", ((0.0, None),), default=None),
        Key("model.rope_jitter", "pos_embed_jitter", ((1.0, None),), default=None),
        Key("model.rope_rescale", "pos_embed_rescale", ((1.0, None),), default=None),
        Key("model.qk_norm", "qk_norm"),
        Key("model.qk_norm_affine", "qk_norm_affine"),
        Key("model.qk_norm_bias", "qk_norm_bias", default=False),
        Key("model.layer_scale_init", "layerscale_value"),
        Key("model.drop_path_rate", "drop_path_prob"),
        Key("model.posemb", "absolute_positions", _POSITIONS, False),
    ),
    tasks=(
        Task("ViTNepaForPreTraining", {"objective.name": NEPA, **_ROTARY},
             (Key("objective.causal", "is_causal", default=True),),
             {"add_pooling_layer": True}),
        Task("ViTNepaForImageClassification",
             {"objective.name": SUPERVISED, "objective.pool": Not("cls"), **_ROTARY}, (
            Key("objective.num_classes", "num_labels"),
            Key("objective.causal", "is_causal"),
            Key("objective.pool", "add_pooling_layer", (("mean", True), ("last", False))),
        )),
        Task("ViTNepaModel", {"objective.name": encoder.NAME, **_ROTARY},
             (Key("objective.causal", "is_causal"),)),
    ),
    ours={"model.final_norm": True},
    theirs={"model_type": "vit_nepa", **_NO_DROPOUT},
)  # fmt: skip

VIT_MAE_CONFIG = ConfigTable(
    recipe="mae.py",
    keys=_SIZES,
    tasks=(
        Task("ViTMAEForPreTraining", {"objective.name": MAE}, (
            Key("objective.mask_ratio", "mask_ratio"),
            Key("objective.norm_pix_loss", "norm_pix_loss"),
            Key("objective.decoder_embed_dim", "decoder_hidden_size"),
            Key("objective.decoder_depth", "decoder_num_hidden_layers"),
            Key("objective.decoder_num_heads", "decoder_num_attention_heads"),
            Key("objective.decoder_mlp_dim", "decoder_intermediate_size"),
        )),
        Task("ViTMAEModel", _ENCODER, theirs={"mask_ratio": 0.0}),
    ),
    ours={"model.final_norm": True, **_NO_NEPA_PARTS},
    theirs={"model_type": "vit_mae", "hidden_act": "gelu", **_NO_DROPOUT},
    square=True,
)  # fmt: skip

VIT_CONFIG = ConfigTable(
    recipe="mae.py",
    keys=_SIZES,
    tasks=(
        Task("ViTForImageClassification", _BY_CLASS, (Key("objective.num_classes", "num_labels"),)),
        Task("ViTModel", _ENCODER),
    ),
    ours={"model.final_norm": True, **_NO_NEPA_PARTS},
    theirs={"model_type": "vit", "hidden_act": "gelu", **_NO_DROPOUT},
)  # fmt: skip

_TIMM_SIZES = (
    Key("model.embed_dim", "embed_dim"),
    Key("model.depth", "depth"),
    Key("model.num_heads", "num_heads"),
    Key("model.floored_ratio", "mlp_ratio"),
    Key("model.side", "img_size"),
    Key("model.patch_size", "patch_size"),
    Key("model.in_channels", "in_chans"),
    Key("model.layer_scale_init", "init_values"),
    Key("model.qkv_bias", "qkv_bias", default=True),
)
TIMM_CONFIG = ConfigTable(
    recipe="mae.py",
    by_shape=True,
    keys=_TIMM_SIZES,
    tasks=(
        Task("vit_base_patch16_224", {**_ENCODER, "model.final_norm": True},
             theirs={"num_classes": 0, "global_pool": "token"}),
        Task("vit_base_patch16_224", {**_BY_MEAN, "model.final_norm": False},
             (Key("objective.num_classes", "num_classes"),), {"global_pool": "avg"}),
        Task("vit_base_patch16_224", {**_BY_CLASS, "model.final_norm": True},
             (Key("objective.num_classes", "num_classes"),), {"global_pool": "token"}),
    ),
    ours={
        "model.mlp": "gelu", "model.rope_base": None, "model.posemb": Not("none"),
        "model.qk_norm": False, "model.norm_eps": 1e-6,
    },
)  # fmt: skip
TIMM_EVA_CONFIG = ConfigTable(
    recipe="nepa.py",
    keys=(
        *_TIMM_SIZES,
        Key("model.qk_norm", "qk_norm"),
        Key("model.rope_base", "rope_temperature"),
        Key("model.rope_shift", "rope_shift_coords", ((0.0, None),), default=None),
        Key("model.rope_jitter", "rope_jitter_coords", ((1.0, None),), default=None),
        Key("model.rope_rescale", "rope_rescale_coords", ((1.0, None),), default=None),
    ),
    tasks=(Task("eva02_base_patch14_224", {"objective.name": encoder.NAME}),),
    ours={"model.mlp": "gelu", "model.posemb": "none", "model.final_norm": True, **_ROTARY},
    theirs={
        "attn_type": "rope", "rope_type": "dinov3", "rope_rotate_half": True,
        "use_rot_pos_emb": True, "use_abs_pos_emb": False, "ref_feat_shape": None,
        "swiglu_mlp": False, "scale_mlp": False, "qkv_fused": True,
        "num_classes": 0, "global_pool": "token", "use_fc_norm": False,
        "use_post_transformer_norm": True,
    },
    # A plain q/k-norm comes in with weights of one: the same function.
    assumed={"objective.causal": True, "model.qk_norm_affine": True, "model.norm_eps": 1e-12},
)  # fmt: skip

# These two have no config file; what their code fixes is checked all the same.
MAE_CONFIG = ConfigTable(
    recipe="mae.py",
    by_shape=True,
    keys=(),
    tasks=(
        Task("mae", {"objective.name": MAE, "objective.decoder_mlp_ratio": Same("model.mlp_ratio"),
                     "objective.decoder_mlp_dim": Same("objective.floored_mlp_dim")}),
        Task("vit", {**_BY_MEAN, "model.final_norm": False}),
        Task("vit", {**_BY_CLASS, "model.final_norm": True}),
        Task("vit", _ENCODER),
    ),
    ours={**_NO_NEPA_PARTS, "model.qkv_bias": True},
    assumed={"model.norm_eps": 1e-6},
    square=True,
)  # fmt: skip
BIG_VISION_CONFIG = ConfigTable(
    recipe="mae.py",
    by_shape=True,
    keys=(),
    tasks=(Task("vit", _BY_CLASS), Task("vit", _ENCODER)),
    ours={
        **_NO_NEPA_PARTS, "model.qkv_bias": True, "model.final_norm": True, "model.norm_eps": 1e-6,
    },
    assumed={"model.pixel_mean": (0.5,) * 3, "model.pixel_std": (0.5,) * 3},
)  # fmt: skip

CONFIG_TABLES: dict[str, ConfigTable] = {
    "nepa": NEPA_CONFIG, "mae": MAE_CONFIG, "vit_mae": VIT_MAE_CONFIG, "vit": VIT_CONFIG,
    "timm": TIMM_CONFIG, "timm_eva": TIMM_EVA_CONFIG, "big_vision": BIG_VISION_CONFIG,
}  # fmt: skip
