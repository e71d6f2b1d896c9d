"""Does an exported model give the same numbers in PyTorch as the trained one here?"""

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError, in_short
from nepa_jax.formats.sources import open_source
from nepa_jax.formats.tables import Format
from nepa_jax.loading import Loaded, load
from nepa_jax.objectives.encoder import is_causal

LARGEST_DIFFERENCE = 1e-4
NUM_IMAGES = 2


@dataclass(frozen=True)
class ParityReport:
    """The largest difference of each hidden state, in float32."""

    library: str
    differences: dict[str, float]

    @property
    def largest(self) -> float:
        return max(self.differences.values())

    @property
    def equal(self) -> bool:
        """Also False for NaN."""
        return self.largest <= LARGEST_DIFFERENCE

    def require_equal(self) -> None:
        """Raises UserError unless every layer agrees."""
        if not self.equal:
            name = max(self.differences, key=lambda key: self.differences[key])
            raise UserError(
                f"--check: {name} differs by {self.largest:.2e} in {self.library}, more than "
                f"{LARGEST_DIFFERENCE:.0e}; the export must not be used"
            )


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Between entries; of states larger than 1 in root mean square, in units of that.

    The stream before the final norm grows in training, and the rounding of float32 with it.
    """
    scale = max(1.0, float(np.sqrt(np.mean(np.square(ours)))))
    return float(np.max(np.abs(ours - theirs))) / scale


def check(out: str, path: str | None = None, objective: str | None = None) -> ParityReport:
    """Runs an exported folder in its library, and our model, on the same random images.

    Args:
        out: the exported folder.
        path: the workdir or checkpoint it was exported from; None (for a resampled position table, which the
            run does not have): our model with the folder's own weights.
        objective: a module of the user's own; see :func:`nepa_jax.load`.

    Raises:
        UserError: PyTorch or the library is not installed.
    """
    source = open_source(out)
    table, config = source.format, source.config
    ours = load(out) if path is None else _exported(path, source.metadata, objective)
    height, width = config.model.image_size
    shape = (NUM_IMAGES, height, width, config.model.in_channels)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    theirs = _in_its_library(out, table, config, normalised(images, config.model))
    states = our_states(ours, images)
    differences = {
        layer: largest_difference(states[layer], state)
        for layer, state in theirs.items()
        if layer in states
    }
    return ParityReport(table.library, differences)


def _exported(path: str, metadata: Mapping[str, str], objective: str | None) -> Loaded:
    """The trained weights that an export was made of."""
    ema = metadata["nepa_jax.weights"] == "ema"
    return load(path, ema=ema, step=int(metadata["nepa_jax.step"]), objective=objective)


def _in_its_library(
    out: str, table: Format, config: ConfigDict, pixels: np.ndarray
) -> dict[str, np.ndarray]:
    """Raises UserError whatever goes wrong there: libraries raise anything where they do not match."""
    library = table.library
    stays = f"the export stays in {out}, unchecked"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(library)
            from nepa_jax.export.torch_model.run import hidden_states

            return hidden_states(Path(out), table.name, config, pixels)
    except Exception as error:
        if (
            isinstance(error, ModuleNotFoundError) and error.name
        ):  # Transformers raises some without
            raise UserError(
                f"--check: format {table.name!r} runs in {library}, and {error.name} is not "
                f"installed; pip install torch {library}; {stays}"
            ) from None
        raise UserError(
            f"--check: {library} does not work here ({in_short(error)}); install versions of torch, "
            f"torchvision and {library} that go together; {stays}"
        ) from error


def normalised(images: np.ndarray, model) -> np.ndarray:  # noqa: ANN001
    """uint8 [B, H, W, C] -> float32 [B, C, H, W]."""
    mean, std = np.float32(model.pixel_mean), np.float32(model.pixel_std)
    return np.ascontiguousarray(((images / np.float32(255) - mean) / std).transpose(0, 3, 1, 2))


def our_states(loaded: Loaded, images: np.ndarray) -> dict[str, np.ndarray]:
    """``embedding``, ``layer 1`` … and ``norm`` of our model in float32, each [B, 1 + N, D]."""
    states = np.asarray(_states(loaded.model, images, is_causal(loaded.config)))
    named = {f"layer {index}": state for index, state in enumerate(states)}
    named["embedding"] = named.pop("layer 0")
    if loaded.model.vit.config.final_norm:
        named["norm"] = np.asarray(loaded.model.vit.norm(states[-1]))
    return named


@partial(jax.jit, static_argnames="causal")
def _states(model: nnx.Module, images: jax.Array, causal: bool) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return model.vit.hidden_states(images, causal=causal)
