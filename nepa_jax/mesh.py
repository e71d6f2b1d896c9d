"""Devices and shardings. The only place that knows mesh axes.

Models name the axes of their parameters and activations; the two tables here say on which mesh axis
each name lies. Every way to spread a run is a choice of three sizes:

    data=-1 fsdp=1  tensor=1    data parallel: every device holds all parameters, as under pmap
    data=-1 fsdp=16 tensor=1    fully sharded (ZeRO-3): 16 devices share one copy of everything
    data=-1 fsdp=1  tensor=4    tensor parallel: 4 devices share the heads and the MLP of each layer

and they combine.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import leaf_name

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axis. A name that is not here is not split.
PARAMETER_RULES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor"}
ACTIVATION_RULES = {"batch": ("data", "fsdp"), "heads": "tensor", "mlp": "tensor"}


def make_mesh(config: ConfigDict, devices: list[jax.Device] | None = None) -> Mesh:
    """The (data, fsdp, tensor) mesh of all devices of all hosts.

    Several slices of TPUs are joined along ``data``, whose one gradient reduction a step is all that
    then goes over the slower network between them. GPU nodes, which report slices too, are no
    such: any axis may span them.

    Raises:
        UserError: the sizes do not multiply to the number of devices, or the batch does not divide.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and devices[0].platform == "tpu":
        places = _joined_slices(shape, slices, devices)
    else:
        places = mesh_utils.create_device_mesh(
            tuple(shape.values()), devices, allow_split_physical_axes=True
        )
    return Mesh(places, tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def side_by_side() -> Mesh:
    """The mesh of all devices of all hosts, each with all parameters: for work without training."""
    places = np.array(jax.devices()).reshape(-1, 1, 1)
    return Mesh(places, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_shape(config: ConfigDict, num_devices: int) -> dict[str, int]:
    """Sizes of data, fsdp and tensor, with -1 filled in.

    Raises:
        UserError: they do not multiply to the number of devices, or the batch does not divide.
    """
    problems = mesh_problems(config, num_devices)
    if problems:
        raise UserError(*problems)
    sizes = _sizes(config)
    rest = num_devices // _product(sizes)
    return {axis: rest if size == -1 else size for axis, size in sizes.items()}


def mesh_problems(config: ConfigDict, num_devices: int | None = None) -> list[str]:
    """What is wrong with the mesh of a config, a line each; to be told with the config's others.

    Args:
        config: of a run; its batch and its parts must be whole numbers of 1 or more.
        num_devices: of all hosts; None where devices are not to be touched yet. Then only what no
            number of devices can mend is found.
    """
    sizes = _sizes(config)
    problems = [
        f"mesh.{axis} = {size!r}: give the number of devices along it, or -1 for all that remain; "
        f"try --config.mesh.{axis}=1"
        for axis, size in sizes.items()
        if type(size) is not int or (size < 1 and size != -1)
    ]
    if problems:
        return problems
    free = [axis for axis in AXES if sizes[axis] == -1]
    if len(free) > 1:
        others = " ".join(f"--config.mesh.{axis}=1" for axis in free[1:])
        return [f"mesh = {sizes}: only one size can be -1, all that remain; try {others}"]
    if num_devices is not None:
        fixed = _product(sizes)
        if num_devices % fixed or (not free and fixed != num_devices):
            return [
                f"mesh = {sizes}: does not fit {num_devices} device(s); "
                f"try {_fitting(sizes, num_devices)}"
            ]
        sizes |= dict.fromkeys(free, num_devices // fixed)
    return _batch_problems(config, _product({axis: sizes[axis] for axis in ("data", "fsdp")}))


def _batch_problems(config: ConfigDict, parts: int) -> list[str]:
    images, accum_steps = config.data.batch_size, config.optim.accum_steps
    if images % (parts * accum_steps) == 0:
        return []
    least = parts * accum_steps
    return [
        f"data.batch_size = {images}: {parts} devices take part of it, in "
        f"optim.accum_steps = {accum_steps} parts; "
        f"try --config.data.batch_size={max(images // least, 1) * least}"
    ]


def _sizes(config: ConfigDict) -> dict[str, Any]:
    return {axis: config.mesh[axis] for axis in AXES}


def _product(sizes: dict[str, int]) -> int:
    """Of the sizes that are given; those of -1 are not."""
    return math.prod(size for size in sizes.values() if size != -1)


def _fitting(sizes: dict[str, int], num_devices: int) -> str:
    """The options that make sizes fit, with as much of fsdp and tensor as divides the devices."""
    tensor = math.gcd(max(sizes["tensor"], 1), num_devices)
    fsdp = math.gcd(max(sizes["fsdp"], 1), num_devices // tensor)
    fitting = {"data": -1, "fsdp": fsdp, "tensor": tensor}
    changed = [
        f"--config.mesh.{axis}={fitting[axis]}" for axis in sizes if sizes[axis] != fitting[axis]
    ]
    return " ".join(changed)


def _joined_slices(shape: dict[str, int], slices: int, devices: list[jax.Device]) -> np.ndarray:
    if shape["data"] % slices:
        raise UserError(
            f"mesh.data = {shape['data']}: {slices} slices are joined along it; try a multiple"
        )
    inside = (shape["data"] // slices, shape["fsdp"], shape["tensor"])
    return mesh_utils.create_hybrid_device_mesh(
        inside, (slices, 1, 1), devices, allow_split_physical_axes=True
    )


# Activations


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lays an activation out by the logical names of its axes; outside of a mesh does nothing.

    Without it the compiler may gather whole activations to save the gathering of weights.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    rules = {name: _divided(on, mesh) for name, on in ACTIVATION_RULES.items()}
    return jax.lax.with_sharding_constraint(x, _spec(axes, x.ndim, rules))


def _divided(on: str | tuple[str, ...], mesh: AbstractMesh) -> tuple[str, ...]:
    """Of mesh axes, those along which this trace has the whole array: not one device's own part."""
    axes = (on,) if isinstance(on, str) else on
    return tuple(axis for axis in axes if axis not in mesh.manual_axes)


# Batches


def apart_along_data(
    function: Callable[[Any, Any], tuple[Any, Any]], whole: Any, rows: Any
) -> tuple[Any, Any]:
    """``function(whole, rows)`` of the rows at each place along ``data`` by themselves, all put together.

    So what it sums over microbatches is reduced over devices once. With parameters split over
    ``fsdp`` every microbatch gathers and scatters anyway: then, as without a mesh, it is called plainly.

    Args:
        function: gives means over its rows, and arrays [parts, layers, B, …] of single rows.
        rows: arrays [parts, B, …].
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["data"] == 1 or mesh.shape["fsdp"] > 1:
        return function(whole, rows)

    def here(whole: Any, rows: Any) -> tuple[Any, Any]:
        means, single = function(whole, rows)
        return jax.lax.pmean(means, "data"), single

    spread = PartitionSpec(None, "data"), PartitionSpec(None, None, "data")
    return jax.shard_map(
        here, mesh=mesh, axis_names={"data"}, in_specs=(PartitionSpec(), spread[0]),
        out_specs=(PartitionSpec(), spread[1]), check_vma=False,
    )(whole, rows)  # fmt: skip


def rows_per_device(rows: int) -> int:
    """Of so many rows of a batch, those of one device; outside of a mesh all. 1 if they do not divide."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = [axis for axis in ACTIVATION_RULES["batch"] if axis not in mesh.manual_axes]
    parts = math.prod(mesh.shape.get(axis, 1) for axis in axes)
    return rows // parts if rows % parts == 0 else 1


class Part(NamedTuple):
    """The rows of every batch that a host feeds: one of ``count`` equal blocks."""

    index: int
    count: int
    shards: tuple[int, ...]  # places of its devices along the batch, in order


def host_part(mesh: Mesh) -> Part:
    """This host's part. Hosts whose devices share rows, under tensor parallelism, feed the same.

    Raises:
        UserError: some hosts share a part of their rows only.
    """
    places = dict(np.ndenumerate(mesh.devices))
    shards: dict[int, set[int]] = {}
    for (data, fsdp, _), device in places.items():
        shards.setdefault(device.process_index, set()).add(data * mesh.shape["fsdp"] + fsdp)
    blocks = sorted({tuple(sorted(rows)) for rows in shards.values()})
    if sum(map(len, blocks)) != mesh.shape["data"] * mesh.shape["fsdp"]:
        raise UserError(
            f"mesh = {dict(mesh.shape)}: the hosts share rows of the batch unevenly; make mesh.tensor "
            "a divisor or a multiple of the devices per host"
        )
    mine = tuple(sorted(shards[jax.process_index()]))
    return Part(blocks.index(mine), len(blocks), mine)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the devices that see different images."""
    return NamedSharding(mesh, PartitionSpec(ACTIVATION_RULES["batch"]))


def layer_sharding(mesh: Mesh) -> NamedSharding:
    """The same of arrays [layers, B, …]."""
    return NamedSharding(mesh, PartitionSpec(None, ACTIVATION_RULES["batch"]))


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows [B / parts, …] as part of global device arrays [B, …].

    Adds ``row`` int32 [B], the rows' numbers in the batch: on which device a row comes to lie
    depends on the mesh, and nothing else may.
    """
    part, sharding = host_part(mesh), batch_sharding(mesh)
    size = len(next(iter(batch.values())))
    rows = np.arange(part.index * size, (part.index + 1) * size, dtype=np.int32)
    return {
        name: _spread(values, part, sharding) for name, values in (batch | {"row": rows}).items()
    }


def put_layers(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """This host's rows of every layer, [layers, B / parts, …], as part of an array [layers, B, …]."""
    return _spread(rows, host_part(mesh), layer_sharding(mesh), axis=1)


def _spread(rows: np.ndarray, part: Part, sharding: NamedSharding, axis: int = 0) -> jax.Array:
    """Rows of this host, which lie along an axis, on its devices."""
    here = rows.shape[axis]
    size, before = here // len(part.shards), (slice(None),) * axis  # rows of a device

    def of_device(index: tuple[slice, ...]) -> np.ndarray:
        place = part.shards.index((index[axis].start or 0) // size)
        return rows[(*before, slice(place * size, (place + 1) * size))]

    shape = (*rows.shape[:axis], here * part.count, *rows.shape[axis + 1 :])
    return jax.make_array_from_callback(shape, sharding, of_device)


# States


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """A sharding for every leaf of a state whose parameters carry logical axis names.

    Moments and averages have the names of their parameters, and so lie where those do.

    Raises:
        UserError: a mesh axis does not divide the axis of a parameter.
    """

    def shardings(path: tuple[Any, ...], node: Any) -> Any:
        axes = node.get_metadata().get("axes", ()) if isinstance(node, nnx.Variable) else ()
        return jax.tree.map(lambda leaf: _sharding(leaf, axes, mesh, leaf_name(path)), node)

    is_leaf = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    return jax.tree_util.tree_map_with_path(shardings, state, is_leaf=is_leaf)


def _sharding(leaf: Any, axes: tuple[str, ...], mesh: Mesh, name: str) -> NamedSharding:
    spec = _spec(axes, leaf.ndim, PARAMETER_RULES)
    for size, axis in zip(leaf.shape, spec, strict=False):
        if axis is not None and size % mesh.shape[axis]:
            raise UserError(
                f"mesh.{axis} = {mesh.shape[axis]}: does not divide an axis of {size} in {name}; "
                f"try --config.mesh.{axis}={int(np.gcd(size, mesh.shape[axis]))}"
            )
    return NamedSharding(mesh, spec)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _spec(axes: tuple[str | None, ...], ndim: int, rules: dict[str, Any]) -> PartitionSpec:
    """Axes are named from the last; a stack's layer axis in front has no name and is not split."""
    if len(axes) > ndim:
        return PartitionSpec()
    names = [rules.get(axis) for axis in axes]
    return PartitionSpec(*[None] * (ndim - len(names)), *names)
