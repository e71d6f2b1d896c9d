"""Writes a trained model as the folder that another library expects."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.checkpoint.reading import Checkpoint, find_checkpoints, newest_sound, workdir_of
from nepa_jax.checkpoint.weights import Weights, open_weights
from nepa_jax.config import to_json
from nepa_jax.export.card import model_card
from nepa_jax.export.own_files import check_place, put
from nepa_jax.export.resize import resize_model
from nepa_jax.formats import files
from nepa_jax.formats.config_tables import CONFIG_TABLES
from nepa_jax.formats.configs import export_config
from nepa_jax.formats.convert import array_shapes, entries, stream_arrays
from nepa_jax.formats.fit import Fit
from nepa_jax.formats.fold import folded, has_layer_scale
from nepa_jax.formats.sources import PROVENANCE
from nepa_jax.formats.tables import Format, known_format
from nepa_jax.objectives import encoder
from nepa_jax.objectives.base import abstract_model, load_objective
from nepa_jax.run.metrics import read_metrics

MAX_PART_BYTES = 5 * 10**9  # larger safetensors files are split, with an index file
MAX_PATCHES = 1 << 16  # of an image: 4096 px at a patch side of 16
TORCH_MODEL = Path(__file__).parent / "torch_model"


class ExportReport(NamedTuple):
    """What was written, and under which names."""

    files: list[str]
    names: Fit
    provenance: Mapping[str, str]


def export(
    path: str,
    name: str,
    out: str,
    *,
    ema: bool = False,
    step: int | None = None,
    encoder_only: bool = False,
    image_size: int | None = None,
    fold_layer_scale: bool = False,
    objective: str | None = None,
) -> ExportReport:
    """Writes the weights of a run in another library's format.

    It appears whole or not at all; of an earlier export there, the files that it wrote are replaced.

    Args:
        path: the workdir of a run, or ``WORKDIR/checkpoints/STEP``.
        name: the format.
        out: the folder to write.
        ema: the averaged weights instead of the raw ones.
        step: which checkpoint of a workdir; None: the newest sound one.
        encoder_only: leave out decoder and head.
        image_size: resample position tables for square images of this side, px.
        fold_layer_scale: multiply LayerScale into the maps before it.
        objective: a module of the user's own, where the checkpoint names one outside of the package.

    Raises:
        UserError: no such format or weights, a model that the format cannot hold, or an ``out``
            that is a URL or holds something else.
    """
    table = known_format(name)
    check_place(out)

    def written_from(checkpoint: Checkpoint) -> ExportReport:
        weights = open_weights(checkpoint, ema, objective)
        model, config = weights.model, weights.provenance.config
        if encoder_only and config.objective.name != encoder.NAME:
            model, config = encoder_alone(model, config)
        if fold_layer_scale:
            model, config = without_layer_scale(model, config)
        if image_size is not None:
            model, config = _resized(model, config, image_size, table.resampling)
        theirs = export_config(config, name)
        provenance = describe_origin(weights, config, name, ema)
        last = metrics_at(path, weights.step)
        written = put(out, lambda folder: _write_folder(folder, model, table, config, theirs, provenance, last))  # fmt: skip
        return ExportReport(written, names_of(model, table), provenance)

    return newest_sound(find_checkpoints(path, step), written_from)


def names_of(model: nnx.Module, table: Format) -> Fit:
    """Every name pair of an export; nothing can be missing in one."""
    return Fit(mapped=[(entry.theirs, entry.ours) for entry in entries(model, table)])


def encoder_alone(model: nnx.Module, config: ConfigDict) -> tuple[nnx.Module, ConfigDict]:
    """The ViT of a model without decoder or head, and its config."""
    alone = encoder.encoder_config(config)
    shapes = abstract_model(load_objective(alone.objective.name).init_model, alone)
    return with_leaves(shapes, named_leaves(model)), alone


def without_layer_scale(model: nnx.Module, config: ConfigDict) -> tuple[nnx.Module, ConfigDict]:
    """The same function of a model without LayerScale, and its config.

    Raises:
        UserError: it has none.
    """
    leaves = named_leaves(model)
    if not has_layer_scale(leaves):
        raise UserError(
            "--fold-layer-scale: this model has no LayerScale (model.layer_scale_init = none); leave "
            "it out"
        )
    bare = ConfigDict(config.to_dict())
    with bare.ignore_type():
        bare.model.layer_scale_init = None
    shapes = abstract_model(load_objective(bare.objective.name).init_model, bare)
    return with_leaves(shapes, folded(leaves)), bare


def _resized(
    model: nnx.Module, config: ConfigDict, side: int, rule: str
) -> tuple[nnx.Module, ConfigDict]:
    """Raises UserError for images that no attention over all patches could take."""
    patch = config.model.patch_size
    if (side // patch) ** 2 > MAX_PATCHES:
        raise UserError(
            f"--image-size={side}: makes {side // patch:,} x {side // patch:,} patches, more than "
            f"{MAX_PATCHES:,}; try {24 * patch}"
        )
    return resize_model(model, config, side, rule)


def describe_origin(weights: Weights, config: ConfigDict, name: str, ema: bool) -> dict[str, str]:
    """What goes into the header of the weights: all text, as safetensors wants it."""
    saved = weights.provenance
    return {
        "format": "pt",  # what Transformers looks for
        "nepa_jax.format": name,
        "nepa_jax.step": str(weights.step),
        "nepa_jax.weights": "ema" if ema else "raw",
        "nepa_jax.versions": json.dumps(dict(saved.versions), sort_keys=True),
        "nepa_jax.fingerprint": saved.fingerprint,
        "nepa_jax.config": to_json(saved.config),
        "nepa_jax.model_config": to_json(config),
    }


def _write_folder(
    folder: Path, model: nnx.Module, table: Format, config: ConfigDict, theirs: dict[str, Any],
    provenance: Mapping[str, str], metrics: dict[str, float],
) -> None:  # fmt: skip
    shapes, stream = array_shapes(model, table), stream_arrays(model, table)
    if table.flax:
        files.write_npz(folder / files.NPZ, stream)
    else:
        files.write_safetensors(folder, shapes, stream, provenance, MAX_PART_BYTES)
    for name, content in side_files(table, config, theirs).items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    (folder / PROVENANCE).write_text(json.dumps(dict(provenance), indent=2) + "\n")
    for name in table.shipped:
        shutil.copyfile(TORCH_MODEL / name, folder / name)
    (folder / "README.md").write_text(model_card(table.name, config, provenance, metrics))


def side_files(table: Format, config: ConfigDict, theirs: dict[str, Any]) -> dict[str, Any]:
    """The config and preprocessing files of a format, as JSON values."""
    if not CONFIG_TABLES[table.name].keys:
        return {}
    if table.library == "timm":
        return {"config.json": timm_config(config, theirs)}
    auto = {"auto_map": AUTO_MAP} if table.name == "nepa" else {}
    settings = {**auto, **theirs, "dtype": "float32"}
    return {"config.json": settings, "preprocessor_config.json": image_processor(config)}


AUTO_MAP = {
    "AutoConfig": "configuration_nepa.ViTNepaConfig",
    "AutoModel": "modeling_nepa.ViTNepaModel",
    "AutoModelForPreTraining": "modeling_nepa.ViTNepaForPreTraining",
    "AutoModelForImageClassification": "modeling_nepa.ViTNepaForImageClassification",
}


def timm_config(config: ConfigDict, theirs: dict[str, Any]) -> dict[str, Any]:
    """What ``timm.create_model("local-dir:FOLDER")`` reads."""
    arguments = {k: v for k, v in theirs.items() if k not in ("architectures", "num_classes")}
    height, width = config.model.image_size
    return {
        "architecture": theirs["architectures"][0],
        "num_classes": theirs["num_classes"],
        "num_features": config.model.embed_dim,
        "global_pool": theirs["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [config.model.in_channels, height, width],
            "fixed_input_size": True,
            "interpolation": config.data.interpolation,
            # Of a classifier that of its accuracy; an encoder takes images whole.
            "crop_pct": config.data.crop_pct if theirs["num_classes"] else 1.0,
            "mean": list(config.model.pixel_mean),
            "std": list(config.model.pixel_std),
            "num_classes": theirs["num_classes"],
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "unknown",
        },
    }


def image_processor(config: ConfigDict) -> dict[str, Any]:
    """Settings of Transformers' ViT image processor."""
    height, width = config.model.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": {"bilinear": 2, "bicubic": 3}[config.data.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.model.pixel_mean),
        "image_std": list(config.model.pixel_std),
    }


def metrics_at(path: str, step: int) -> dict[str, float]:
    """The losses and evaluations that a run logged last up to a step, {} if there are none."""
    rows = read_metrics(Path(workdir_of(path)) / "metrics.jsonl")
    last: dict[str, float] = {}
    for row in rows:
        if row["step"] <= step:
            last |= {key: value for key, value in row.items() if _is_result(key, value)}
    return last


def _is_result(key: str, value: Any) -> bool:
    """Not the speed, the queues and the memory of the machine that a model was trained on."""
    return isinstance(value, int | float) and ("loss" in key or key.startswith("eval/"))
