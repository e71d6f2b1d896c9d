"""Every key's range and choices; defaults are in configs/base.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.sections import Bound

UNITS = ("steps", "epochs", "examples")
# Every number a run understands, its range and what to try; defaults are in configs/base.py. Those of
# `data` are in nepa_jax.data.settings, those of an objective in its own file. A length or an interval
# (`total`, `warmup`, …) stands here without its unit.
BOUNDS: dict[str, dict[str, Bound]] = {
    "model": {
        "image_size": Bound("[1, 16384]", "224 or (224, 128)", pair=True),
        "patch_size": Bound("[1, 4096]", "16"),
        "in_channels": Bound("[1, 4]", "3"),
        "pixel_mean": Bound("[-10, 10]", "(0.5, 0.5, 0.5)"),  # of pixels in [0, 1]
        "pixel_std": Bound("[0.001, 10]", "(0.5, 0.5, 0.5)"),
        "embed_dim": Bound("[1, 65536]", "768"),
        "depth": Bound("[1, 1000]", "12"),
        "num_heads": Bound("[1, 4096]", "12"),
        "mlp_ratio": Bound("(0, 64]", "4.0"),
        "rope_base": Bound("[1, 1e9]", "100.0 or none", also=(None,)),
        "rope_rescale": Bound("[1, 100]", "2.0, or 1.0 for off"),
        "rope_jitter": Bound("[1, 100]", "1.5, or 1.0 for off"),
        "rope_shift": Bound("[0, 100]", "0.5, or 0.0 for off"),
        "layer_scale_init": Bound("[0, 100]", "1e-5 or none", also=(None,)),
        "drop_path_rate": Bound("[0, 1)", "0.1"),
        "norm_eps": Bound("(0, 0.1]", "1e-6"),
    },
    "optim": {
        "lr": Bound("(0, 1]", "1e-3 or none", also=(None,)),
        "base_lr": Bound("(0, 1]", "1.5e-4 or none", also=(None,)),
        "b1": Bound("[0, 1)", "0.9"),
        "b2": Bound("[0, 1)", "0.95"),
        "eps": Bound("(0, 0.1]", "1e-8"),
        "weight_decay": Bound("[0, 10]", "0.05"),
        "clip_norm": Bound("(0, 1e6]", "1.0 or none", also=(None,)),
        "spike_factor": Bound("(1, 1e6]", "10.0 or none", also=(None,)),
        "accum_steps": Bound("[1, 65536]", "1"),
        "ema_decay": Bound("[0, 1)", "0.9999 or none", also=(None,)),
        "layer_decay": Bound("(0, 1]", "0.65 or none", also=(None,)),
        "layer_decay_end": Bound("(0, 1]", "1.0 or none", also=(None,)),
        "layer_decay_offset": Bound("[0, 1]", "0"),
        "head_lr": Bound("(0, 1]", "1e-3 or none", also=(None,)),
    },
    "schedule": {
        "total": Bound("(0, 1e12]", "100"),
        "warmup": Bound("[0, 1e12]", "5, or 0 for none"),
        "final_lr": Bound("[0, 1]", "0.0"),
    },
    "mesh": {
        axis: Bound("[1, 1048576]", "1, or -1 for all that remain", also=(-1,))
        for axis in ("data", "fsdp", "tensor")
    },
    "checkpoint": {
        "every": Bound("(0, 1e12]", "1000"),
        "first_minutes": Bound("(0, 1e6]", "10.0, or 0 for none", also=(0,)),
        "keep_last": Bound("[1, 1000000]", "2"),
        "keep_every": Bound("(0, 1e12]", "10000, or 0 for none for good", also=(0,)),
    },
    "log": {
        "every": Bound("(0, 1e12]", "50"),
        "profile_steps": Bound("[0, 2147483647]", "(10, 15), or (0, 0) for none"),
        "pictures_every": Bound("(0, 1e12]", "1000, or 0 for none", also=(0,)),
        "watchdog_s": Bound("[1, 604800]", "600, or 0 for never", also=(0,)),
    },
    "evals": {
        "layers": Bound("[-1000, 1000]", "(6, 12), or () for a choice"),
        "lr": Bound("(0, 1]", "1e-3"),
        "every": Bound("(0, 1e12]", "1000"),
        "bank_images": Bound("[20, 10000000]", "10000"),
        "test_images": Bound("[1, 10000000]", "2000"),
        "validate_images": Bound("[0, 10000000]", "0, for all"),
    },
    "run": {
        "seed": Bound("[0, 4294967295]", "0"),
        "max_skipped_steps": Bound("[0, 1000000]", "10"),
    },
}  # fmt: skip
MAX_STEPS = 2**31 - 1  # a step is an int32
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "model": {
        "mlp": ("gelu", "swiglu", "geglu"),
        "posemb": ("none", "sincos", "learned"),
        "init": ("normal", "xavier"),
    },
    "optim": {"shape": ("cosine", "linear"), "layer_decay_ramp": ("cosine", "linear")},
    "run": {
        "dtype": ("auto", "float32", "bfloat16"),
        "residual_dtype": ("float32", "bfloat16"),
        "reduce_dtype": ("float32", "bfloat16"),
        "remat": ("none", "names", "dots", "full"),
    },
}
# Tools that show runs, and their packages; extras of these names install them.
LOGGERS = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
}
OWN_OBJECTIVES = "nepa_jax.objectives"
OBJECTIVES = tuple(f"{OWN_OBJECTIVES}.{name}" for name in ("nepa", "mae", "supervised", "segment"))
# What other programs call our keys.
OTHER_NAMES = {
    "learning_rate": "optim.lr", "blr": "optim.base_lr", "min_lr": "schedule.final_lr", "wd": "optim.weight_decay",
    "beta1": "optim.b1", "beta2": "optim.b2", "betas": "optim.b1", "grad_clip": "optim.clip_norm",
    "clip_grad": "optim.clip_norm", "max_grad_norm": "optim.clip_norm", "gradient_accumulation_steps": "optim.accum_steps",
    "accum_iter": "optim.accum_steps", "ema": "optim.ema_decay", "epochs": "schedule.total_epochs",
    "num_epochs": "schedule.total_epochs", "steps": "schedule.total_steps", "num_steps": "schedule.total_steps",
    "max_steps": "schedule.total_steps", "warmup": "schedule.warmup_steps", "bs": "data.batch_size",
    "workers": "data.num_workers", "hidden_size": "model.embed_dim", "width": "model.embed_dim",
    "num_layers": "model.depth", "layers": "model.depth", "heads": "model.num_heads", "img_size": "model.image_size",
    "input_size": "model.image_size", "drop_path": "model.drop_path_rate", "precision": "run.dtype",
    "llrd": "optim.layer_decay", "llrd_end": "optim.layer_decay_end", "nb_classes": "objective.num_classes",
    "num_labels": "objective.num_classes", "save_every": "checkpoint.every_steps", "log_every": "log.every_steps", "resume": "run.init_from",
}  # fmt: skip


def bounds_of(name: str) -> dict[str, Bound]:
    """The bounds of a section, those of lengths under each of their names."""
    bounds = BOUNDS.get(name, {})
    return bounds | {f"{key}_{unit}": bound for key, bound in bounds.items() for unit in UNITS}


def in_units_of(section: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults, each length under the name it has in the section: its unit may be another."""
    named: dict[str, Any] = {}
    for key, default in defaults.items():
        other = None if key in section else in_another_unit(section, key)
        named |= {other: float(default)} if other else {key: default}
    return named


def in_another_unit(section: Mapping[str, Any], key: str) -> str | None:
    """The section's key for the same length in another unit, if there is one."""
    stem, _, unit = key.rpartition("_")
    others = (f"{stem}_{other}" for other in UNITS if other != unit and unit in UNITS)
    return next((other for other in others if other in section), None)


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every leaf under its dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (dict, ConfigDict)):
            leaves |= flat_keys(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def refuse(problems: Sequence[str]) -> None:
    """Raises UserError with a line for each problem, if there are any."""
    if problems:
        first, *others = problems
        raise UserError(f"config: {first}", *others)
