"""An array of a checkpoint is read in whole or in parts, and never as anything but what was saved."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nepa_jax.base.lazy import LazyArray
from nepa_jax.checkpoint.arrays import (
    MIN_PIECE_BYTES,
    array_handler,
    onto_devices,
    open_part,
    save_arrays,
)
from nepa_jax.checkpoint.meta import Damaged, LeafMeta, described

LAYERS = 6
STACK = np.random.default_rng(0).normal(size=(LAYERS, MIN_PIECE_BYTES // 64, 16)).astype("f4")
ARRAYS = {"stack": STACK, "small": STACK[:, :8], "vector": STACK[0, :, 0], "mask": STACK[0] > 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> epath.Path:
    path = epath.Path(tmp_path_factory.mktemp("saved") / "arrays")
    write(path, ARRAYS)
    return path


def write(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
    with ocp.Checkpointer(array_handler()) as checkpointer:
        checkpointer.save(path, args=save_arrays({"model": jax.device_put(arrays)}))


def opened(folder: epath.Path, name: str, saved: LeafMeta | None = None) -> LazyArray:
    return open_part(folder, "model", {name: saved or described(ARRAYS)[name]})[name].lazy()


@pytest.mark.parametrize("name", ARRAYS)
def test_it_says_what_it_is_and_is_read_in_whole(folder, name):
    array = opened(folder, name)
    assert (array.shape, array.dtype) == (ARRAYS[name].shape, ARRAYS[name].dtype)
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(array), ARRAYS[name])


def test_a_stack_of_large_layers_lies_on_disk_layer_by_layer(folder):
    assert opened(folder, "stack").rows_together == 1
    assert opened(folder, "small").rows_together == LAYERS


@pytest.mark.parametrize("axis", [0, 1])
def test_so_it_does_where_several_devices_wrote_it(tmp_path, axis):
    devices = Mesh(np.array(jax.devices()[:2]), ("fsdp",))
    wide = np.concatenate([STACK, STACK], axis=1)
    where = NamedSharding(devices, PartitionSpec(*[None] * axis, "fsdp"))
    path = epath.Path(tmp_path / "arrays")
    write(path, {"wide": jax.device_put(wide, where)})
    array = opened(path, "wide", described({"wide": wide})["wide"])
    assert array.rows_together == 1
    np.testing.assert_array_equal(np.asarray(array), wide)


@pytest.mark.parametrize("spec", [(), ("x",), (None, "y"), ("y", "x"), (None, ("x", "y"))])
def test_each_device_gets_its_own_part(folder, spec):
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("x", "y"))
    names = {"stack": PartitionSpec(*spec), "vector": PartitionSpec("y"), "mask": PartitionSpec()}
    wanted = {
        name: jax.ShapeDtypeStruct(ARRAYS[name].shape, ARRAYS[name].dtype, sharding=NamedSharding(mesh, where))
        for name, where in names.items()
    }  # fmt: skip
    saved = {name: described(ARRAYS)[name] for name in names}
    found = onto_devices(open_part(folder, "model", saved), wanted)
    for name, array in found.items():
        assert array.sharding == wanted[name].sharding
        np.testing.assert_array_equal(array, ARRAYS[name], err_msg=name)


def test_rows_are_read_in_any_order_by_several_threads_and_again(folder):
    array = opened(folder, "stack")
    rows = [slice(0, 1), slice(1, 4), slice(4, None)]
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(array.__getitem__, rows))
        for part, values in zip(rows, found, strict=True):
            np.testing.assert_array_equal(values, STACK[part])


def other_sums(name: str) -> LeafMeta:
    return described(ARRAYS)[name]._replace(sums=(1, 2))


def test_other_values_are_found_out_in_whole_and_with_the_last_rows(folder):
    array = opened(folder, "stack", other_sums("stack"))
    with pytest.raises(Damaged, match="model/stack is not what was saved"):
        np.asarray(array)
    for row in range(1, LAYERS):
        array[row : row + 1]
    with pytest.raises(Damaged, match="model/stack is not what was saved"):
        array[0:1]


@pytest.mark.parametrize("other", [{"dtype": "int32"}, {"shape": (1,)}])
def test_another_array_in_its_place_is_found_out_at_once(folder, other):
    with pytest.raises(Damaged, match="model/small is not what was saved"):
        opened(folder, "small", described(ARRAYS)["small"]._replace(**other))


def test_what_is_missing_or_cut_off_is_named(folder, tmp_path):
    with pytest.raises(Damaged, match="model/none cannot be read"):
        opened(folder, "none", other_sums("small"))
    write(epath.Path(tmp_path / "arrays"), ARRAYS)
    array = opened(epath.Path(tmp_path / "arrays"), "stack")
    for path in Path(tmp_path).rglob("ocdbt.process_0/d/*"):
        path.write_bytes(path.read_bytes()[:16])
    with pytest.raises(Damaged, match="model/stack cannot be read: ValueError"):
        array[0:1]
