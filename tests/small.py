"""Runs small enough for tests: the real recipes, shrunk by overrides, on records made here.

Every part is switched on at a size that shows: with the recipe's LayerScale of 1e-5 the blocks
could be left out and the loss would change by less than tests of equality allow.
"""

import io
from pathlib import Path

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.weights import save_weights
from nepa_jax.config import apply_overrides, load_config, resolve
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.objectives.base import Objective, load_objective
from nepa_jax.step import TrainState, Update, abstract_state, create_state, make_update

SHRUNK = {
    "model.image_size": "16", "model.embed_dim": "32", "model.depth": "2", "model.num_heads": "2",
    "model.layer_scale_init": "1.0", "model.drop_path_rate": "0.2", "optim.clip_norm": "1.0",
    "data.batch_size": "8", "data.num_threads": "1", "optim.ema_decay": "0.9", "schedule.total_steps": "6",
    "schedule.warmup_steps": "2", "log.every_steps": "1", "checkpoint.every_steps": "2", "run.dtype": "float32",
}  # fmt: skip
DECODER = {
    "objective.decoder_embed_dim": "16", "objective.decoder_depth": "1", "objective.decoder_num_heads": "2",
}  # fmt: skip
RECIPES = {"nepa": "configs/nepa.py:Ti/4", "mae": "configs/mae.py:Ti/4"}


def overrides(method: str, path: str, **more: str) -> dict[str, str]:
    """What makes a recipe small, and the data it reads; keyword names have ``__`` for dots."""
    keys = SHRUNK | (DECODER if method == "mae" else {}) | {"data.path": path}
    return keys | {key.replace("__", "."): value for key, value in more.items()}


def arguments(method: str, path: str, **more: str) -> list[str]:
    """The same for the command line."""
    keys = overrides(method, path, **more)
    return [f"--config={RECIPES[method]}", *(f"--config.{k}={v}" for k, v in keys.items())]


def config(method: str, path: str = "unused", **more: str) -> ConfigDict:
    """A small run's config, not resolved."""
    run = load_config(RECIPES[method])
    apply_overrides(run, overrides(method, path, **more))
    return run


def finetuning(method: str, path: str, source: str, **more: str) -> ConfigDict:
    """A small fine-tuning run's config, not resolved; ``source``: the weights it begins with."""
    run = load_config(f"configs/finetune.py:{method},Ti/4")
    keys = {"objective.num_classes": "4", "run.init_from": source, "evals.every_steps": "2"}
    apply_overrides(run, overrides("nepa", path, **more) | keys)
    return run


def segmenting(method: str, path: str, source: str, **more: str) -> ConfigDict:
    """A small run's config that learns three classes of pixels, not resolved."""
    run = load_config(f"configs/segment.py:{method},Ti/4")
    keys = {
        "objective.num_classes": "3", "objective.channels": "16", "objective.aux_channels": "8",
        "run.init_from": source, "evals.every_steps": "2", "optim.ema_decay": "none",
    }  # fmt: skip
    apply_overrides(run, overrides("nepa", path) | keys)
    apply_overrides(run, {key.replace("__", "."): value for key, value in more.items()})
    return run


def resolved(method: str, **more: str) -> ConfigDict:
    return resolve(config(method, **more), num_examples=40, platform="cpu")


def started(config: ConfigDict, objective: Objective, mesh: Mesh) -> tuple[TrainState, Update]:
    """The state before step 0, and the update."""
    target = abstract_state(config, objective, mesh)
    return create_state(config, objective, target), make_update(config, objective, target)


def images(count: int, seed: int = 0, side: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_dataset(folder: Path, seed: int, count: int = 40) -> str:
    """Labelled images of noise as prepared records; returns the folder."""
    examples = [(png(pixels), i % 4, f"{i}.png") for i, pixels in enumerate(images(count, seed))]
    prepare_arrays(examples, str(folder), classes=("a", "b", "c", "d"))
    return str(folder)


def write_labelled(folder: Path, counts: dict[str, int]) -> str:
    """Images whose brightness is their class, in several splits; returns the folder."""
    for split, count in counts.items():
        pixels = (
            images(count, seed=len(split)) // 4 + 60 * (np.arange(count) % 4)[:, None, None, None]
        )
        examples = [(png(one.astype(np.uint8)), i % 4, f"{i}.png") for i, one in enumerate(pixels)]
        prepare_arrays(examples, str(folder), split=split, classes=("a", "b", "c", "d"))
    return str(folder)


def write_run(folder: Path, method: str, seed: int = 3, step: int = 5) -> str:
    """Fresh weights, as a run of so many steps would leave them; returns the folder."""
    config = resolved(method)
    model = load_objective(config.objective.name).init_model(config, nnx.Rngs(seed))
    save_weights(str(folder), step, model, Provenance.of(config, "none"))
    return str(folder)
