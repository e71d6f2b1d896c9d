"""The same step in PyTorch, in a process of its own, to measure ours against.

The process that measures JAX never loads PyTorch, so that neither's threads are in the other's way.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.weights import save_weights
from nepa_jax.export.folder import export
from nepa_jax.export.parity import normalised
from nepa_jax.formats.configs import export_config

OURS = "ours"
FORMS = ("eager", "compiled")
DEVICES = {"cpu": "cpu", "gpu": "cuda"}  # jax's name, PyTorch's
FORMATS = {f"nepa_jax.objectives.{name}": name for name in ("nepa", "mae")}
# Of NEPA's objective, what the official model does.
OFFICIAL = {"include_cls": True, "shift": 1, "stop_gradient": True}


class Sides(NamedTuple):
    """PyTorch's forms, each as a function: runs for some seconds and returns those of a step."""

    forms: dict[str, Callable[[float], float]]
    words: dict[str, str]  # what is to be said: versions, device, attention; forms that do not work


NO_SIDES = Sides({}, {})


def prefer_sharing() -> None:
    """Before jax sees its devices: it must leave memory of a GPU to PyTorch."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def check_comparable(config: ConfigDict) -> None:
    """Raises UserError unless PyTorch is there and has the config's step."""
    for library in ("torch", "transformers", "safetensors"):
        if find_spec(library) is None:
            raise UserError(
                f"--against=torch needs PyTorch, and {library} is not installed; "
                "pip install torch transformers"
            )
    platform = jax.default_backend()
    if platform not in DEVICES or (platform == "gpu" and jax.device_count() > 1):
        raise UserError(
            f"--against=torch: {jax.device_count()} devices of {platform}; it compares on a CPU or on "
            "one GPU: set CUDA_VISIBLE_DEVICES=0, or JAX_PLATFORMS=cpu"
        )
    objective = config.objective
    if objective.name not in FORMATS:
        raise UserError(
            f"--against=torch: objective.name = {objective.name}: PyTorch's side has "
            f"{' and '.join(FORMATS)} only; leave out --against"
        )
    try:
        export_config(config, FORMATS[objective.name])
    except UserError as error:
        raise UserError(f"--against=torch: {error}") from None
    for key, value in OFFICIAL.items():
        if objective.get(key, value) != value:
            raise UserError(
                f"--against=torch: objective.{key} = {objective[key]}: the official model has {value}; "
                "leave out the override, or --against"
            )
    if FORMATS[objective.name] == "mae" and config.model.drop_path_rate:
        raise UserError(
            f"--against=torch: model.drop_path_rate = {config.model.drop_path_rate}: the official MAE "
            "has none; leave out the override, or --against"
        )


def torch_sides(
    config: ConfigDict, model: nnx.Module, images: np.ndarray, stack: ExitStack
) -> Sides:
    """Starts PyTorch with the weights and images [B, H, W, C] of ours.

    Raises:
        UserError: the official format cannot hold the model, or PyTorch does not work here.
    """
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nepa-jax-bench-")))
    export_weights(config, model, folder)
    np.save(folder / "pixels.npy", normalised(images, config.model))
    device = DEVICES[jax.default_backend()]
    process = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
    try:
        words = process.submit(start, folder, config, device).result()
    except Exception as error:  # libraries raise anything where they do not match
        raise UserError(
            f"--against=torch: PyTorch does not work here ({_short(error)}); install builds of torch "
            f"and transformers that go together, for this device ({device})"
        ) from error
    forms = {}
    for form in FORMS:
        try:
            _run(process, form, 0.0)
            forms[form] = partial(_run, process, form)
        except Exception as error:  # of a compiler that is not there, most of all
            words[f"torch_{form}"] = f"none: {_short(error)}"
    return Sides(forms, words)


def export_weights(config: ConfigDict, model: nnx.Module, folder: Path) -> Path:
    """The model of a resolved config in its official format, below ``folder``; returns its folder."""
    run, out = folder / "run", folder / "exported"
    save_weights(str(run), 0, jax.tree.map(np.asarray, model), Provenance.of(config, ""))
    export(str(run), FORMATS[config.objective.name], str(out))
    return out


def compared(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """PyTorch's step times, medians over rounds, and the medians of the ratios of ours to them."""
    found = {}
    for form in rounds[0].keys() & set(FORMS):
        found[f"torch_{form}_step_s"] = median(each[form] for each in rounds)
        found[f"over_torch_{form}"] = median(each[OURS] / each[form] for each in rounds)
    return dict(sorted(found.items(), reverse=True))


def _short(error: Exception) -> str:
    """Of an error that came from another process, with a traceback for its cause."""
    error.__cause__ = None
    return in_short(error)


def _run(process: Executor, form: str, seconds: float) -> float:
    return process.submit(run, form, seconds).result()


# In PyTorch's process.

_training: Any = None


def start(folder: Path, config: ConfigDict, device: str) -> dict[str, str]:
    """Makes the one training of this process; returns words on it."""
    sys.modules["torchvision"] = (
        None  # Transformers imports it if there; made for another torch, it raises
    )
    import torch

    from nepa_jax.export.torch_model.training import Training

    global _training
    pixels = torch.from_numpy(np.load(folder / "pixels.npy"))
    _training = Training(folder / "exported", config, pixels, device)
    where = f"{torch.get_num_threads()} threads"
    if device == "cuda":
        where = f"{torch.cuda.get_device_name()}, attention {_training.attention.name}"
    return {"torch": f"{torch.__version__}, {where}"}


def run(form: str, seconds: float) -> float:
    return _training.run(form, seconds)
