"""A model of ours with the weights of files in any format."""

import jax
from flax import nnx

from nepa_jax.formats.convert import compare, fill
from nepa_jax.formats.fit import Fit
from nepa_jax.formats.sources import Source
from nepa_jax.objectives.base import abstract_model, saved_objective


def read_model(source: Source, allow_partial: bool = False) -> tuple[nnx.Module, Fit]:
    """Our model with a source's weights, read once np.asarray asks, and how the names fit.

    Raises:
        UserError: a name is missing or unexpected (unless allowed), or of another shape.
    """
    objective = saved_objective(source.config, str(source.path))
    shapes = abstract_model(objective.init_model, source.config)
    names = compare(shapes, source.format, source.arrays)
    if not allow_partial:
        names.require_complete(str(source.path))
    names.require_arrays(str(source.path))
    if names.missing:
        shapes = jax.jit(lambda: objective.init_model(source.config, nnx.Rngs(0)))()
    return fill(shapes, source.format, source.arrays), names
