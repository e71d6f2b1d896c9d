"""What a step needs, by formula: exact for the state, by tracing the loss for activations; no compiler.

Per device, with n images of a microbatch on it:

    state         parameters, optimizer, average, the objective's extra: shapes and shardings
    gradients     float32, as the parameters lie; twice under accumulation
    activations   n · (what the traced backward pass keeps for an image) and, where a layer is computed
                  again, n · (what it would keep without) / model.depth

    time of a step   the longest of
        products   model FLOPs, 4/3 of them under full remat, at the chip's peak
        memory     state and gradients read and written once, what the traced backward pass would keep
                   without remat written once and read twice, the weights in bfloat16 read three times
                   a microbatch
        links      eight bytes for every parameter: a gradient reduced; or, with fsdp, weights gathered
                   twice in bfloat16 and a gradient scattered, for each microbatch
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from ml_collections import ConfigDict

from nepa_jax import config as configs
from nepa_jax.mesh import mesh_shape
from nepa_jax.objectives.base import Batch, load_objective
from nepa_jax.plan.chips import GIB, Topology
from nepa_jax.step import TrainState, abstract_batch, abstract_state, with_heads


@dataclass(frozen=True)
class Plan:
    """What is to be expected of a step on a topology."""

    topology: str
    by: str  # "compiler" or "formula"
    fits: bool
    hbm_gib: float  # of each device
    hbm_limit_gib: float
    memory_gib: dict[str, float]  # the same by kind
    program_flops: float | None  # of a step, all devices; None where no program was made
    model_flops: float
    est_step_ms: float | None
    est_mfu: float | None
    collectives: dict[str, dict[str, float]] = field(default_factory=dict)  # count, bytes, min_ms
    compile_s: float | None = None
    compile_cpu_s: float | None = None
    overrides: list[str] = field(default_factory=list)  # options to add, to paste
    where: dict[str, dict[str, float]] | None = None


def device_bytes(tree: Any) -> int:
    """What each device holds of arrays with shapes, dtypes and shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def state_bytes(state: TrainState) -> dict[str, int]:
    """What each device holds of a state, by kind."""
    parts = dict(
        parameters=state.model, optimizer=state.opt_state, average=state.ema,
        extra=(state.extra, state.heads),
    )  # fmt: skip
    return {name: device_bytes(part) for name, part in parts.items()}


def step_bytes(config: ConfigDict, state: TrainState) -> dict[str, int]:
    """What each device needs for a step, by kind.

    Args:
        config: resolved.
        state: abstract, of this config.
    """
    mesh = state.step.sharding.mesh
    images = config.data.batch_size // (mesh.shape["data"] * mesh.shape["fsdp"])
    accum = config.optim.accum_steps
    platform = mesh.abstract_mesh.abstract_device.platform
    kept = kept_bytes(config, config.run.remat, platform)
    if config.run.remat != "none":
        kept += kept_bytes(config, "none", platform) // config.model.depth
    found = state_bytes(state)
    gradients = found["parameters"] * (2 if accum > 1 else 1)
    return found | {"gradients": gradients, "activations": images // accum * kept}


def kept_bytes(config: ConfigDict, remat: str, platform: str = "tpu") -> int:
    """What the backward pass keeps for one image, in the forms that are best on a platform."""
    alone = ConfigDict(config.to_dict())  # without what makes no difference to one image
    alone.run.remat, alone.optim.accum_steps, alone.data.batch_size = remat, 1, MANY
    alone.mesh = dict(data=1, fsdp=1, tensor=1)
    return _kept_bytes(configs.to_json(alone), platform)


MANY = 16 * 7919  # images: with a prime of which no size of a model is a multiple


@cache
def _kept_bytes(text: str, platform: str) -> int:
    """Of the arrays that the traced backward pass takes from the forward, those that grow with the batch."""
    config = configs.from_json(text)
    objective = load_objective(config.objective.name)
    mesh, key = abstract_mesh(config, 1, platform), jax.random.key(0)
    state, batch = abstract_state(config, objective, mesh), abstract_batch(config, True, mesh)

    def backward(model: Any, extra: Any, batch: Batch) -> Any:
        return jax.vjp(lambda m: objective.loss(m, extra, batch, key), model, has_aux=True)[1]

    with jax.sharding.use_abstract_mesh(mesh):
        kept = jax.tree.leaves(jax.eval_shape(backward, state.model, state.extra, batch))
    return _bytes(leaf for leaf in kept if leaf.size % MANY == 0) // MANY


def _bytes(leaves: Iterable[jax.ShapeDtypeStruct]) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def abstract_mesh(config: ConfigDict, num_devices: int, platform: str = "tpu") -> AbstractMesh:
    """The mesh of devices that are not here.

    Raises:
        UserError: as ``mesh.mesh_shape``.
    """
    sides = mesh_shape(config, num_devices)
    auto = (AxisType.Auto,) * len(sides)
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    return AbstractMesh(
        tuple(sides.values()), tuple(sides), axis_types=auto, abstract_device=device
    )


def estimate(config: ConfigDict, topology: Topology) -> Plan:
    """A plan by formula.

    Args:
        config: resolved.

    Raises:
        UserError: the mesh does not fit the topology, or the batch the mesh.
    """
    chip, objective = topology.chip, load_objective(config.objective.name)
    mesh = abstract_mesh(config, topology.num_devices)
    state = with_heads(abstract_state(config, objective, mesh), config, objective)
    memory = step_bytes(config, state)
    needed = sum(memory.values()) / GIB
    flops = objective.describe(config).flops * config.data.batch_size
    step_s = _step_s(config, state, topology, flops)
    return Plan(
        topology=topology.name,
        by="formula",
        fits=needed <= chip.hbm_gib,
        hbm_gib=needed,
        hbm_limit_gib=chip.hbm_gib,
        memory_gib={name: size / GIB for name, size in memory.items()},
        program_flops=None,
        model_flops=flops,
        est_step_ms=1e3 * step_s,
        est_mfu=flops / step_s / (topology.num_devices * chip.peak_flops),
    )


def _step_s(config: ConfigDict, state: TrainState, topology: Topology, flops: float) -> float:
    """Seconds of a step, at least."""
    chip, mesh, accum = topology.chip, state.step.sharding.mesh, config.optim.accum_steps
    repeated = 4 / 3 if config.run.remat == "full" else 1.0
    products_s = flops * repeated / (topology.num_devices * chip.peak_flops)
    images = config.data.batch_size / (mesh.shape["data"] * mesh.shape["fsdp"])
    weights = _bytes(jax.tree.leaves(state.model)) / mesh.shape["tensor"]  # float32
    held = state_bytes(state)
    traffic = 2 * (sum(held.values()) + held["parameters"]) + 1.5 * accum * weights
    traffic += 3 * images * kept_bytes(config, "none")
    links = 2 * weights * (accum if mesh.shape["fsdp"] > 1 else 1)
    return max(products_s, traffic / chip.hbm_bytes_per_s, links / chip.link_bytes_per_s)
