"""Their config files ↔ our ``model`` and ``objective`` sections, as tables of key pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from nepa_jax.config import CONFIGS, flat_keys, image_size, load_config, resolve
from nepa_jax.errors import UserError
from nepa_jax.export import encoder

NEPA, MAE, SUPERVISED = (f"nepa_jax.objectives.{name}" for name in ("nepa", "mae", "supervised"))


@dataclass(frozen=True)
class Key:
    """``ours`` ↔ ``theirs``; ``values``: the pairs (ours, theirs) that are written differently."""

    ours: str
    theirs: str
    values: tuple[tuple[Any, Any], ...] = ()

    def export(self, value: Any) -> Any:
        return next((theirs for ours, theirs in self.values if ours == value), value)

    def restore(self, value: Any) -> Any:
        return next((ours for ours, theirs in self.values if theirs == value), value)


@dataclass(frozen=True)
class Task:
    """What a file of the format can be: its class there, our objective, and the keys of both."""

    architecture: str
    ours: Mapping[str, Any]  # keys of ours with the one value that fits this task
    keys: tuple[Key, ...] = ()
    theirs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigTable:
    """One format's config. ``ours`` and ``theirs`` hold the keys with one possible value;
    ``assumed`` what their file does not say."""

    recipe: str  # gives the rest of our config, should training go on
    keys: tuple[Key, ...]
    tasks: tuple[Task, ...]
    ours: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)


_NO_NEPA_PARTS = {
    "model.mlp": "gelu",
    "model.rope_base": None,
    "model.qk_norm": False,
    "model.layer_scale_init": None,
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
)
_NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "qkv_bias": True,
    "initializer_range": 0.02,
}
_ENCODER = {"objective.name": encoder.NAME, "objective.causal": False}

NEPA_CONFIG = ConfigTable(
    recipe="nepa.py",
    keys=(
        *_SIZES,
        Key("model.mlp", "use_gated_mlp", (("gelu", False), ("swiglu", True))),
        Key("model.mlp", "hidden_act", (("swiglu", "silu"),)),
        Key("model.rope_base", "rope_theta"),
        Key("model.rope_shift", "pos_embed_shift", ((0.0, None),)),
        Key("model.rope_jitter", "pos_embed_jitter", ((1.0, None),)),
        Key("model.rope_rescale", "pos_embed_rescale", ((1.0, None),)),
        Key("model.qk_norm", "qk_norm"),
        Key("model.qk_norm_affine", "qk_norm_affine"),
        Key("model.layer_scale_init", "layerscale_value"),
        Key("model.drop_path_rate", "drop_path_prob"),
        Key("model.posemb", "absolute_positions",
            (("none", False), ("none", None), ("learned", True))),
    ),
    tasks=(
        Task("ViTNepaForPreTraining", {"objective.name": NEPA},
             theirs={"is_causal": True, "add_pooling_layer": True}),
        Task("ViTNepaForImageClassification", {"objective.name": SUPERVISED}, (
            Key("objective.num_classes", "num_labels"),
            Key("objective.causal", "is_causal"),
            Key("objective.pool", "add_pooling_layer", (("mean", True), ("last", False))),
        )),
        Task("ViTNepaModel", {"objective.name": encoder.NAME},
             (Key("objective.causal", "is_causal"),)),
    ),
    ours={"model.final_norm": True},
    theirs={"model_type": "vit_nepa", "qk_norm_bias": False, **_NO_DROPOUT},
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
)  # fmt: skip

VIT_CONFIG = ConfigTable(
    recipe="mae.py",
    keys=_SIZES,
    tasks=(
        Task("ViTForImageClassification",
             {"objective.name": SUPERVISED, "objective.pool": "cls", "objective.causal": False},
             (Key("objective.num_classes", "num_labels"),)),
        Task("ViTModel", _ENCODER),
    ),
    ours={"model.final_norm": True, **_NO_NEPA_PARTS},
    theirs={"model_type": "vit", "hidden_act": "gelu", **_NO_DROPOUT},
)  # fmt: skip

_TIMM_SIZES = (
    Key("model.embed_dim", "embed_dim"),
    Key("model.depth", "depth"),
    Key("model.num_heads", "num_heads"),
    Key("model.mlp_ratio", "mlp_ratio"),
    Key("model.side", "img_size"),
    Key("model.patch_size", "patch_size"),
    Key("model.in_channels", "in_chans"),
    Key("model.layer_scale_init", "init_values"),
)
TIMM_CONFIG = ConfigTable(
    recipe="mae.py",
    keys=_TIMM_SIZES,
    tasks=(
        Task("vit_base_patch16_224", {**_ENCODER, "model.final_norm": True},
             theirs={"num_classes": 0, "global_pool": "token"}),
        Task("vit_base_patch16_224",
             {"objective.name": SUPERVISED, "objective.pool": "mean", "objective.causal": False,
              "model.final_norm": False},
             (Key("objective.num_classes", "num_classes"),), {"global_pool": "avg"}),
        Task("vit_base_patch16_224",
             {"objective.name": SUPERVISED, "objective.pool": "cls", "objective.causal": False,
              "model.final_norm": True},
             (Key("objective.num_classes", "num_classes"),), {"global_pool": "token"}),
    ),
    ours={
        "model.mlp": "gelu", "model.rope_base": None,
        "model.qk_norm": False, "model.norm_eps": 1e-6,
    },
)  # fmt: skip
TIMM_EVA_CONFIG = ConfigTable(
    recipe="nepa.py",
    keys=(
        *_TIMM_SIZES,
        Key("model.qk_norm", "qk_norm"),
        Key("model.rope_base", "rope_temperature"),
        Key("model.rope_shift", "rope_shift_coords", ((0.0, None),)),
        Key("model.rope_jitter", "rope_jitter_coords", ((1.0, None),)),
        Key("model.rope_rescale", "rope_rescale_coords", ((1.0, None),)),
    ),
    tasks=(Task("eva02_base_patch14_224", {"objective.name": encoder.NAME}),),
    ours={"model.mlp": "gelu", "model.posemb": "none", "model.final_norm": True},
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
    keys=(),
    tasks=(
        Task("mae", {"objective.name": MAE}),
        Task("vit", {"objective.name": SUPERVISED, "objective.pool": "mean",
                     "objective.causal": False, "model.final_norm": False}),
        Task("vit", {"objective.name": SUPERVISED, "objective.pool": "cls",
                     "objective.causal": False, "model.final_norm": True}),
        Task("vit", _ENCODER),
    ),
    ours={"model.norm_eps": 1e-6, **_NO_NEPA_PARTS},
)  # fmt: skip
BIG_VISION_CONFIG = ConfigTable(
    recipe="mae.py",
    keys=(),
    tasks=(
        Task(
            "vit",
            {"objective.name": SUPERVISED, "objective.pool": "cls", "objective.causal": False},
        ),
        Task("vit", _ENCODER),
    ),
    ours={"model.norm_eps": 1e-6, "model.final_norm": True, **_NO_NEPA_PARTS},
)

CONFIG_TABLES: dict[str, ConfigTable] = {
    "nepa": NEPA_CONFIG, "mae": MAE_CONFIG, "vit_mae": VIT_MAE_CONFIG, "vit": VIT_CONFIG,
    "timm": TIMM_CONFIG, "timm_eva": TIMM_EVA_CONFIG, "big_vision": BIG_VISION_CONFIG,
}  # fmt: skip


# Ours to theirs


def export_config(config: ConfigDict, name: str) -> dict[str, Any]:
    """Their config keys of a run, with ``architectures`` naming the class.

    Raises:
        UserError: the format cannot hold this model.
    """
    table, flat = CONFIG_TABLES[name], _with_derived(config)
    _require_values(table.ours, flat, name)
    task = _task_of(table, flat, name)
    _require_values(task.ours, flat, name)
    pairs = {key.theirs: key.export(flat[key.ours]) for key in (*table.keys, *task.keys)}
    return {"architectures": [task.architecture], **table.theirs, **task.theirs, **pairs}


def _require_values(wanted: Mapping[str, Any], flat: Mapping[str, Any], name: str) -> None:
    for key, value in wanted.items():
        if flat.get(key) != value:
            raise UserError(
                f"{key} = {flat.get(key)}: format {name!r} can only hold {value}; "
                "choose another --format"
            )


def _task_of(table: ConfigTable, flat: Mapping[str, Any], name: str) -> Task:
    """The task of this objective; among several, the one all of whose keys fit, else the first."""
    tasks = [task for task in table.tasks if task.ours["objective.name"] == flat["objective.name"]]
    if not tasks:
        can_shrink = any(task.ours["objective.name"] == encoder.NAME for task in table.tasks)
        remedy = "add --encoder-only" if can_shrink else "choose another --format"
        raise UserError(
            f"objective.name = {flat['objective.name']}: format {name!r} holds no such model; "
            f"{remedy}"
        )
    return next((task for task in tasks if _fits(task.ours, flat)), tasks[0])


def _fits(wanted: Mapping[str, Any], flat: Mapping[str, Any]) -> bool:
    return all(flat.get(key) == value for key, value in wanted.items())


def _with_derived(config: ConfigDict) -> dict[str, Any]:
    """Flat keys, and those that others write as one number: MLP width, side of a square image."""
    flat, model = flat_keys(config), config.model
    height, width = image_size(config)
    return flat | {
        "model.mlp_dim": round(model.embed_dim * model.mlp_ratio),
        "model.side": height if height == width else [height, width],
        "objective.decoder_mlp_dim": 4 * config.objective.get("decoder_embed_dim", 0),
    }


# Theirs to ours

# Written on export, but no matter to the numbers of a trained model.
FREE = ("initializer_range", "add_pooling_layer", "mask_ratio", "global_pool")


def import_config(theirs: Mapping[str, Any], name: str, source: str) -> ConfigDict:
    """A whole run config from their config file.

    Raises:
        UserError: a key is missing, or has a value that our model does not do.
    """
    table = CONFIG_TABLES[name]
    theirs = _with_number_of_labels(theirs)
    task = _their_task(table, theirs, source)
    for key, value in {**table.theirs, **task.theirs}.items():
        if key not in FREE and theirs.get(key, value) != value:
            raise UserError(f"{source}: {key} = {theirs[key]} is not supported; only {value} is")
    missing = [
        k.theirs for k in (*table.keys, *task.keys) if k.theirs not in theirs and not _optional(k)
    ]
    if missing:
        raise UserError(
            f"{source}: lacks {', '.join(missing)}; give the config.json of the weights"
        )
    pairs = {key.ours: key.restore(theirs.get(key.theirs)) for key in (*table.keys, *task.keys)}
    return run_config(table, {**pairs, **table.assumed, **table.ours, **task.ours})


def _optional(key: Key) -> bool:
    return any(theirs is None for _, theirs in key.values)


def _with_number_of_labels(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers writes the labels' names and leaves out their number."""
    named = {"num_labels": len(theirs["id2label"])} if "id2label" in theirs else {}
    return {**named, **theirs}


def _their_task(table: ConfigTable, theirs: Mapping[str, Any], source: str) -> Task:
    names = theirs.get("architectures") or [table.tasks[-1].architecture]
    tasks = [task for task in table.tasks if task.architecture in names]
    if not tasks:
        known = ", ".join(task.architecture for task in table.tasks)
        raise UserError(f"{source}: architecture {names[0]!r} is not supported; known are {known}")
    return next((task for task in tasks if _fits(task.theirs, theirs)), tasks[-1])


def run_config(table: ConfigTable, values: Mapping[str, Any]) -> ConfigDict:
    """The recipe's config with these keys, resolved; no average is kept of imported weights."""
    config = load_config(str(CONFIGS / table.recipe))
    values = _without_derived(values, config)
    objective = {key: value for key, value in values.items() if key.startswith("objective.")}
    with config.ignore_type():
        if values["objective.name"] != config.objective.name:
            config.objective = ConfigDict()
        for key, value in (values | objective).items():
            section, _, name = key.partition(".")
            config[section][name] = value
        config.optim.ema_decay = None
    # ImageNet-1k's size, for durations in epochs
    return resolve(config, num_examples=1_281_167, platform="cpu")


def _without_derived(values: Mapping[str, Any], config: ConfigDict) -> dict[str, Any]:
    """The inverse of :func:`_with_derived`."""
    values = dict(values)
    values.pop("objective.decoder_mlp_dim", None)
    if "model.mlp_dim" in values:
        values["model.mlp_ratio"] = values.pop("model.mlp_dim") / values["model.embed_dim"]
    if "model.side" in values:
        side = values.pop("model.side")
        values["model.image_size"] = (side, side) if isinstance(side, int) else tuple(side)
    return values
