"""Shardings: what lies where, what travels, and that no number depends on it."""

import math
import re
from collections import namedtuple
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np
import pytest
import small
from flax import nnx
from hlo import collectives
from jax.sharding import Mesh

from nepa_jax import mesh as meshes
from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.mesh import host_part, make_mesh, mesh_problems, put_batch, state_shardings
from nepa_jax.objectives.base import load_objective
from nepa_jax.plan import hlo
from nepa_jax.step import abstract_state, make_update

LAYOUTS = {
    "data": {},
    "fsdp": {"mesh__fsdp": "8"},
    "tensor": {"mesh__tensor": "2"},
    "mixed": {"mesh__fsdp": "2", "mesh__tensor": "2"},
}
BATCH = 16


def config(method: str, layout: str = "data", **changes: str):
    # A width that no token count equals, so that shapes tell weights from activations.
    width = dict(model__embed_dim="48", model__num_heads="4", data__batch_size=str(BATCH))
    if method == "mae":
        width |= dict(objective__decoder_embed_dim="24", objective__decoder_num_heads="2")
    return small.resolved(method, **(width | LAYOUTS[layout] | changes))


@cache
def compiled(method: str, layout: str, **changes: str):
    run = config(method, layout, **changes)
    objective, mesh = load_objective(run.objective.name), make_mesh(run)
    state = abstract_state(run, objective, mesh)
    batch = put_batch({"image": small.images(BATCH)}, mesh)
    return make_update(run, objective, state).compiled(state, batch)


def parameter_sizes(method: str) -> set[int]:
    """Numbers of entries of the whole parameters; of stacked ones, of one layer's."""
    run = config(method)
    objective = load_objective(run.objective.name)
    state = abstract_state(run, objective, make_mesh(run))
    leaves = named_leaves(state.model).items()
    return {math.prod(leaf.shape[1:] if "blocks" in name else leaf.shape) for name, leaf in leaves}


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_data_parallel_reduces_each_gradient_once_and_moves_nothing_else(method):
    found = collectives(compiled(method, "data").program.as_text())
    assert set(found) == {"all-reduce"}
    matrices = [math.prod(shape) for shape in found["all-reduce"] if len(shape) > 1]
    assert set(matrices) <= parameter_sizes(method)
    kernels = [n for n, leaf in named_leaves(load_model(method)).items() if n.endswith("kernel")]
    assert sum(len(shape) > 1 and math.prod(shape) >= 24 * 24 for shape in found["all-reduce"]) == (
        len(kernels)
    )


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_accumulation_reduces_gradients_once_a_step(method):
    """As many bytes move as without: none of them for each microbatch."""
    once, parts = (
        hlo.collectives(hlo.read(compiled(method, "data", **changes).program.as_text()))
        for changes in ({}, {"optim__accum_steps": "2"})
    )
    assert set(parts) == {"all-reduce"}
    assert parts["all-reduce"].bytes == pytest.approx(once["all-reduce"].bytes, rel=0.02)


def load_model(method: str):
    run = config(method)
    objective = load_objective(run.objective.name)
    return abstract_state(run, objective, make_mesh(run)).model


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_fully_sharded_gathers_weights_and_never_activations(method):
    found = collectives(compiled(method, "fsdp").program.as_text())
    assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}
    leaves = named_leaves(load_model(method)).items()
    scales = {leaf.size for name, leaf in leaves if "layer_scale" in name}  # gradients, all layers'
    assert {math.prod(shape) for shape in found["all-gather"]} <= parameter_sizes(method) | scales
    for shape in found["all-reduce"] + found.get("reduce-scatter", []):
        assert math.prod(shape) in parameter_sizes(method) | {1}


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_tensor_parallel_reduces_activations_twice_a_layer_and_direction(method):
    found = collectives(compiled(method, "tensor").program.as_text())
    assert set(found) == {"all-reduce"}
    images = BATCH // 4  # of each of the four pairs of devices
    activations = [shape for shape in found["all-reduce"] if len(shape) == 3 and shape[0] == images]
    stacks = {"nepa": 1, "mae": 2}[method]
    assert len(activations) == 4 * stacks  # after attention and MLP, forward and backward


def test_fully_sharded_parameters_and_moments_take_a_fifth_at_most():
    """Per device, from the compiled program: its arguments are the state and a few images."""
    whole, share = (
        compiled("nepa", layout).memory_analysis().argument_size_in_bytes
        for layout in ("data", "fsdp")
    )
    assert share < 0.2 * whole


def test_moments_and_average_lie_where_their_parameters_do():
    run = config("nepa", "mixed")
    objective, mesh = load_objective(run.objective.name), make_mesh(run)
    state = abstract_state(run, objective, mesh)
    where = {name: leaf.sharding.spec for name, leaf in named_leaves(state.model).items()}
    assert any("fsdp" in spec and "tensor" in spec for spec in where.values())
    for tree in (state.ema, state.opt_state):
        for name, leaf in named_leaves(tree).items():
            owner = next((key for key in where if name.endswith(key)), None)
            assert owner is None or leaf.sharding.spec == where[owner], name


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_every_layout_gives_the_losses_of_one_device(method):
    wanted = losses(method, "data", jax.devices()[:1])
    for layout in LAYOUTS:
        np.testing.assert_allclose(losses(method, layout), wanted, rtol=1e-5, err_msg=layout)


def losses(method: str, layout: str, devices: list[jax.Device] | None = None) -> list[float]:
    run = config(method, layout)
    objective, mesh = load_objective(run.objective.name), make_mesh(run, devices)
    state, update = small.started(run, objective, mesh)
    update = update if devices else compiled(method, layout)
    found = []
    for step in range(4):
        state, metrics = update(state, put_batch({"image": small.images(BATCH, step)}, mesh))
        found.append(float(metrics["loss"]))
    return found


# Meshes of machines that are not here


@dataclass(frozen=True)
class Chip:
    id: int
    process_index: int
    slice_index: int
    coords: tuple[int, int, int] = (0, 0, 0)
    platform: str = "tpu"
    device_kind: str = "chip"
    core_on_chip: int = 0


def chips(count: int, per_host: int = 4, slices: int = 1) -> list[Chip]:
    """Slices that are each a plane of chips, four wide."""
    each = count // slices
    return [
        Chip(i, i // per_host, i // each, (i % each // 4, i % each % 4, 0)) for i in range(count)
    ]


def gpus(count: int, per_node: int) -> list[Chip]:
    """jax calls a node a slice, and may list its devices in any order."""
    found = [Chip(i, i, i // per_node, platform="gpu") for i in range(count)]
    return found[::2] + found[1::2]


def part_of(host: int, places: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> meshes.Part:
    monkeypatch.setattr(jax, "process_index", lambda: host)
    shape = dict(zip(("data", "fsdp", "tensor"), places.shape, strict=True))
    return host_part(namedtuple("Places", "devices shape")(places, shape))


def grid(shape: tuple[int, ...], per_host: int = 4) -> np.ndarray:
    places = np.empty(math.prod(shape), object)
    places[:] = chips(math.prod(shape), per_host)
    return places.reshape(shape)


def test_hosts_feed_consecutive_blocks(monkeypatch):
    places = grid((4, 2, 1))
    assert part_of(0, places, monkeypatch) == (0, 2, (0, 1, 2, 3))
    assert part_of(1, places, monkeypatch) == (1, 2, (4, 5, 6, 7))


def test_hosts_that_lie_as_tiles_on_the_mesh_feed_what_their_devices_need(monkeypatch):
    """A TPU host's chips are a square of the torus, not a row of it."""
    places = grid((4, 4, 1)).reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4, 1)
    parts = [part_of(host, places, monkeypatch) for host in range(4)]
    assert [part.index for part in parts] == [0, 1, 2, 3] and parts[0].shards == (0, 1, 4, 5)


def test_hosts_that_share_rows_feed_the_same(monkeypatch):
    places = grid((2, 1, 8))
    parts = [part_of(host, places, monkeypatch) for host in range(4)]
    assert [(part.index, part.count) for part in parts] == [(0, 2), (0, 2), (1, 2), (1, 2)]


def test_hosts_that_share_a_part_of_their_rows_are_refused(monkeypatch):
    with pytest.raises(UserError, match=r"mesh\.tensor"):
        part_of(0, grid((4, 1, 3)), monkeypatch)


@pytest.mark.parametrize("fsdp", [4, 2])  # a row of the chips, a part of one
def test_an_axis_may_be_a_part_of_a_row_of_chips(fsdp):
    mesh = make_mesh(config("nepa", mesh__fsdp=str(fsdp)), chips(16))
    assert dict(mesh.shape) == {"data": 16 // fsdp, "fsdp": fsdp, "tensor": 1}


def slices_of(mesh: Mesh) -> np.ndarray:
    return np.vectorize(lambda chip: chip.slice_index)(mesh.devices)


@pytest.mark.parametrize("fsdp", [4, 2])  # a row of a slice's chips, a part of one
def test_slices_of_tpus_are_joined_along_data(fsdp):
    run = config("nepa", data__batch_size="32", mesh__fsdp=str(fsdp))
    mesh = make_mesh(run, chips(32, slices=2))
    assert dict(mesh.shape) == {"data": 32 // fsdp, "fsdp": fsdp, "tensor": 1}
    first, second = np.split(slices_of(mesh), 2)
    assert (first == 0).all() and (second == 1).all()


@pytest.mark.trial
def test_slices_of_tpus_share_no_other_axis():
    run = config("nepa", mesh__data="1", mesh__fsdp="16")
    with pytest.raises(UserError, match="2 slices are joined along it"):
        make_mesh(run, chips(16, slices=2))


@pytest.mark.trial
@pytest.mark.parametrize(("fsdp", "on_a_row"), [("16", {0, 1}), ("8", {0}), ("2", {0})])
def test_any_axis_may_span_gpu_nodes(fsdp, on_a_row):
    """An axis as long as a node stays on it: its links are the fast ones."""
    mesh = make_mesh(config("nepa", mesh__fsdp=fsdp), gpus(16, per_node=8))
    assert set(slices_of(mesh)[0].flat) == on_a_row


@pytest.mark.trial
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(mesh__fsdp="3"), r"does not fit 8 device\(s\); try --config.mesh.fsdp=1$"),
        (dict(mesh__data="4"), "try --config.mesh.data=-1$"),
        (dict(mesh__fsdp="16", mesh__tensor="6"), "try .*mesh.fsdp=4 --config.mesh.tensor=2$"),
        (dict(data__batch_size="12"), "data.batch_size=8"),
        (dict(optim__accum_steps="4"), "data.batch_size=32"),
    ],
)
def test_a_mesh_that_does_not_fit_is_one_clear_line(changes, named):
    with pytest.raises(UserError, match=named):
        make_mesh(config("nepa", **changes))


# With the other mistakes of a config, before any device is touched


@pytest.mark.trial
@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        (dict(fsdp=0), "mesh.fsdp = 0: give the number of devices"),
        (dict(data=-2), "mesh.data = -2: .*; try --config.mesh.data=1$"),
        (dict(fsdp="two"), "mesh.fsdp = 'two': "),
        (dict(fsdp=2.0), "mesh.fsdp = 2.0: "),
        (dict(fsdp=None), "mesh.fsdp = None: "),
        (dict(fsdp=True), "mesh.fsdp = True: "),
        (dict(data=0, fsdp=0), "mesh.data = 0.*mesh.fsdp = 0"),
        (dict(fsdp=-1), "only one size can be -1.*; try --config.mesh.fsdp=1$"),
        (dict(fsdp=-1, tensor=-1), "try --config.mesh.fsdp=1 --config.mesh.tensor=1$"),
        (dict(fsdp=3), "data.batch_size = 16: 3 devices take part of it"),
        (dict(data=4, fsdp=8), "data.batch_size = 16: 32 devices"),
    ],
)
def test_sizes_are_checked_without_devices(sizes, named):
    run = config("nepa")
    with run.ignore_type():
        run.mesh.update(sizes)
    assert re.search(named, " ".join(mesh_problems(run)))


def test_sizes_that_may_fit_are_no_problem_before_the_devices_are_known():
    for sizes in (dict(), dict(fsdp=16), dict(data=2, fsdp=4, tensor=2), dict(data=1, fsdp=-1)):
        run = config("nepa")
        run.mesh.update(sizes)
        assert mesh_problems(run) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(mesh__tensor="8"), "mesh.tensor = 8: does not divide an axis of 4 .*mesh.tensor=4"),
        (dict(mesh__fsdp="8", model__embed_dim="36", model__num_heads="3"), "mesh.fsdp=4"),
    ],
)
def test_an_axis_that_does_not_divide_is_named(changes, named):
    run = config("nepa", **changes)
    objective, mesh = load_objective(run.objective.name), make_mesh(run)
    shapes = jax.eval_shape(lambda: objective.init_model(run, nnx.Rngs(0)))
    with pytest.raises(UserError, match=named):
        state_shardings(shapes, mesh)


def test_a_batch_keeps_its_rows_and_their_numbers():
    mesh: Mesh = make_mesh(config("nepa", "mixed"))
    images = small.images(BATCH)
    batch = put_batch({"image": images}, mesh)
    np.testing.assert_array_equal(batch["image"], images)
    np.testing.assert_array_equal(batch["row"], np.arange(BATCH))
