"""Their config files ↔ our ``model`` and ``objective`` sections, as tables of key pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.sections import shown
from nepa_jax.config import CONFIGS, flat_keys, load_config, resolve
from nepa_jax.models.sizes import image_size
from nepa_jax.objectives import encoder

NEPA, MAE, SUPERVISED = (f"nepa_jax.objectives.{name}" for name in ("nepa", "mae", "supervised"))


REQUIRED = object()
MAX_WIDTH = 2**24  # of an MLP


class Same(NamedTuple):
    """Stands for the value of another key of ours."""

    key: str


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
    square: bool = False  # its library knows square images alone


_NO_NEPA_PARTS = {
    "model.mlp": "gelu",
    "model.qk_norm_bias": False,
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
    Key("model.qkv_bias", "qkv_bias", default=True),
)
_NO_DROPOUT = {
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.02,
}
_ENCODER = {"objective.name": encoder.NAME, "objective.causal": False}

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
        Key("model.posemb", "absolute_positions", (("none", False), ("learned", True)), False),
    ),
    tasks=(
        Task("ViTNepaForPreTraining", {"objective.name": NEPA},
             (Key("objective.causal", "is_causal", default=True),),
             {"add_pooling_layer": True}),
        Task("ViTNepaForImageClassification", {"objective.name": SUPERVISED}, (
            Key("objective.num_classes", "num_labels"),
            Key("objective.causal", "is_causal"),
            Key("objective.pool", "add_pooling_layer", (("mean", True), ("last", False))),
        )),
        Task("ViTNepaModel", {"objective.name": encoder.NAME},
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
    Key("model.qkv_bias", "qkv_bias", default=True),
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
        Key("model.rope_shift", "rope_shift_coords", ((0.0, None),), default=None),
        Key("model.rope_jitter", "rope_jitter_coords", ((1.0, None),), default=None),
        Key("model.rope_rescale", "rope_rescale_coords", ((1.0, None),), default=None),
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
        Task("mae", {"objective.name": MAE, "objective.decoder_mlp_ratio": Same("model.mlp_ratio")}),
        Task("vit", {"objective.name": SUPERVISED, "objective.pool": "mean",
                     "objective.causal": False, "model.final_norm": False}),
        Task("vit", {"objective.name": SUPERVISED, "objective.pool": "cls",
                     "objective.causal": False, "model.final_norm": True}),
        Task("vit", _ENCODER),
    ),
    ours={**_NO_NEPA_PARTS, "model.qkv_bias": True},
    assumed={"model.norm_eps": 1e-6},
    square=True,
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
    ours={
        **_NO_NEPA_PARTS,
        "model.qkv_bias": True,
        "model.final_norm": True,
        "model.norm_eps": 1e-6,
    },
    assumed={"model.pixel_mean": (0.5,) * 3, "model.pixel_std": (0.5,) * 3},
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
    if table.square and not isinstance(flat["model.side"], int):
        raise UserError(
            f"model.image_size = {config.model.image_size}: format {name!r} can only hold square "
            "images; choose another --format"
        )
    task = _task_of(table, flat, name)
    _require_values(task.ours, flat, name)
    pairs = {key.theirs: key.export(flat[key.ours]) for key in (*table.keys, *task.keys)}
    return {"architectures": [task.architecture], **table.theirs, **task.theirs, **pairs}


def _require_values(wanted: Mapping[str, Any], flat: Mapping[str, Any], name: str) -> None:
    for key, value in wanted.items():
        if flat.get(key) != _wanted(value, flat):
            raise UserError(
                f"{key} = {flat.get(key)}: format {name!r} can only hold {_wanted(value, flat)}; "
                "choose another --format"
            )


def _wanted(value: Any, flat: Mapping[str, Any]) -> Any:
    return flat[value.key] if isinstance(value, Same) else value


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
    return all(flat.get(key) == _wanted(value, flat) for key, value in wanted.items())


# Of an MLP: whether it is gated, and the activation, as the official code writes them.
_MLPS = {"gelu": (False, "gelu"), "swiglu": (True, "silu"), "geglu": (True, "gelu")}


def _with_derived(config: ConfigDict) -> dict[str, Any]:
    """Flat keys, and those that others write otherwise: widths of MLPs, side of a square image, MLP."""
    flat, model, objective = flat_keys(config), config.model, config.objective
    height, width = image_size(config)
    gated, activation = _MLPS[model.mlp]
    ratio = objective.get("decoder_mlp_ratio", 0.0)
    return flat | {
        "model.mlp_dim": round(model.embed_dim * model.mlp_ratio),
        "model.side": height if height == width else [height, width],
        "model.gated": gated,
        "model.activation": activation,
        "objective.decoder_mlp_dim": round(ratio * objective.get("decoder_embed_dim", 0)),
    }


# Theirs to ours

# Written on export, but no matter to the numbers of a trained model.
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
FREE = ("initializer_range", "add_pooling_layer", "mask_ratio", "global_pool", *DROPOUTS)


def import_config(theirs: Mapping[str, Any], name: str, source: str) -> ConfigDict:
    """A whole run config from their config file. What it holds is not proven: see :func:`problems`.

    Raises:
        UserError: a key is missing, or has a value that our model does not do.
    """
    table = CONFIG_TABLES[name]
    theirs = _with_number_of_labels(theirs)
    task = _their_task(table, theirs, source)
    for key, value in {**table.theirs, **task.theirs}.items():
        if key not in FREE and theirs.get(key, value) != value:
            raise UserError(
                f"{source}: {key} = {shown(theirs[key])} is not supported; only {value} is"
            )
    keys = (*table.keys, *task.keys)
    missing = [k.theirs for k in keys if k.theirs not in theirs and k.default is REQUIRED]
    if missing:
        raise UserError(
            f"{source}: lacks {', '.join(missing)}; give the config.json of the weights"
        )
    pairs = {key.ours: key.restore(theirs.get(key.theirs, key.default)) for key in keys}
    values = {**pairs, **table.assumed, **table.ours, **task.ours}
    return run_config(table, values, source)


def known_values(name: str, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """What a config file that may say little says of the keys of ours."""
    return {
        key.ours: key.restore(theirs[key.theirs])
        for key in CONFIG_TABLES[name].keys
        if key.theirs in theirs
    }


def _with_number_of_labels(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers writes the labels' names and leaves out their number."""
    labels = theirs.get("id2label")
    return {**({"num_labels": len(labels)} if isinstance(labels, dict) else {}), **theirs}


def _their_task(table: ConfigTable, theirs: Mapping[str, Any], source: str) -> Task:
    names = theirs.get("architectures") or [table.tasks[-1].architecture]
    if not isinstance(names, list):
        raise UserError(f"{source}: architectures = {shown(names)}: must be a list of names")
    tasks = [task for task in table.tasks if task.architecture in names]
    if not tasks:
        known = ", ".join(dict.fromkeys(task.architecture for task in table.tasks))
        raise UserError(
            f"{source}: architectures = {shown(names)} is not supported; known are {known}"
        )
    return next((task for task in tasks if _fits(task.theirs, theirs)), tasks[-1])


def _without_derived(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The inverse of :func:`_with_derived`.

    Raises:
        UserError: a value cannot be one of ours.
    """
    values = dict(values)
    for ours, width in (("model.mlp", "model"), ("objective.decoder_mlp", "objective.decoder")):
        if f"{ours}_dim" in values:
            dim = values.pop(f"{ours}_dim")
            embed_dim = values[f"{width}{'.' if width == 'model' else '_'}embed_dim"]
            values[f"{ours}_ratio"] = _ratio(dim, embed_dim, source)
    if "model.side" in values:
        values["model.image_size"] = _pair(values.pop("model.side"), source, "image_size")
    if "model.patch_size" in values:
        height, width = _pair(values["model.patch_size"], source, "patch_size")
        if height != width:
            raise UserError(
                f"{source}: patch_size = {(height, width)}: only square patches are supported"
            )
        values["model.patch_size"] = height
    if "model.gated" in values:
        pair = values.pop("model.gated"), values.pop("model.activation")
        mlp = next((name for name, known in _MLPS.items() if known == pair), None)
        if mlp is None:
            raise UserError(
                f"{source}: hidden_act = {shown(pair[1])} with use_gated_mlp = {shown(pair[0])} is not "
                "supported; gelu is, and gated silu or gelu"
            )
        values["model.mlp"] = mlp
    return values


def _ratio(dim: Any, embed_dim: Any, source: str) -> float:
    if type(dim) is not int or type(embed_dim) is not int or embed_dim < 1 or dim > MAX_WIDTH:
        raise UserError(
            f"{source}: widths of an MLP {shown(dim)} and of its tokens {shown(embed_dim)}: "
            f"must be whole numbers from 1 to {MAX_WIDTH:,}"
        )
    return dim / embed_dim


def _pair(side: Any, source: str, key: str) -> tuple[int, int]:
    """One side or two as two."""
    pair = tuple(side) if isinstance(side, list | tuple) else (side, side)
    if len(pair) != 2 or any(type(s) is not int for s in pair):
        raise UserError(
            f"{source}: {key} = {shown(side)}: must be a whole number, or a pair of them"
        )
    return pair


def run_config(table: ConfigTable, values: Mapping[str, Any], source: str) -> ConfigDict:
    """The recipe's config with these keys, resolved; no average is kept of imported weights.

    Raises:
        UserError: a value of the file at ``source`` cannot be one of ours.
    """
    config = load_config(str(CONFIGS / table.recipe))
    values = _without_derived(values, source)
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
