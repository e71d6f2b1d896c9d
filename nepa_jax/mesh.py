"""Devices and shardings. The only place that knows mesh axes.

Models name the axes of their parameters; the table here says on which mesh axis each name lies.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nepa_jax.errors import UserError

# Images of a batch are spread over all devices.
BATCH_AXES = ("data", "fsdp", "tensor")

# Logical parameter axis -> mesh axis; a name that is not here is replicated. Empty: every device
# holds all parameters (data parallel).
PARAMETER_RULES: dict[str, str] = {}


def make_mesh(config: ConfigDict) -> Mesh:
    """The (data, fsdp, tensor) mesh of all devices of all hosts.

    Raises:
        UserError: the sizes do not multiply to the number of devices.
    """
    sizes, devices = dict(config.mesh), jax.devices()
    free = [name for name, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) > 1 or fixed < 1 or len(devices) % fixed or (not free and fixed != len(devices)):
        raise UserError(
            f"mesh = {sizes}: does not fit {len(devices)} devices; try --config.mesh.data=-1"
        )
    shape = [len(devices) // fixed if size == -1 else size for size in sizes.values()]
    return jax.make_mesh(shape, tuple(sizes), axis_types=(AxisType.Auto,) * len(shape))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows [B / hosts, …] as part of global device arrays [B, …]."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of a state whose parameters carry logical axis names."""

    def shardings(node: Any) -> Any:
        axes = node.get_metadata().get("axes", ()) if isinstance(node, nnx.Variable) else ()
        return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(axes, leaf.ndim)), node)

    return jax.tree.map(shardings, state, is_leaf=lambda node: isinstance(node, nnx.Variable))


def _spec(axes: tuple[str, ...], ndim: int) -> PartitionSpec:
    """Axes are named from the last; a stack's layer axis in front has no name and is not split."""
    if len(axes) > ndim:
        return PartitionSpec()
    names = [PARAMETER_RULES.get(axis) for axis in axes]
    return PartitionSpec(*[None] * (ndim - len(names)), *names)
