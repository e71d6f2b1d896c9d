"""What is saved comes back bit by bit or not at all, and a run outlives a damaged checkpoint."""

import errno
import re
import shutil
import time
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nepa_jax.base.errors import RunDiverged, UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.checkpoint.checksums import BLOCK, _of_devices, checksum, checksums
from nepa_jax.checkpoint.meta import Damaged, Provenance
from nepa_jax.checkpoint.reading import find_checkpoints
from nepa_jax.checkpoint.saving import Checkpoints, read_state, state_parts
from nepa_jax.checkpoint.weights import load_weights, save_weights
from nepa_jax.config import base_config
from nepa_jax.run.metrics import read_metrics
from nepa_jax.run.setup import set_up
from nepa_jax.step import TrainState
from nepa_jax.train import pretrain

# Checksums


def mesh(*shape: int) -> Mesh:
    axes = ("x", "y")[: len(shape)]
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), axes)


def sums_of(array: np.ndarray | jax.Array) -> list[int]:
    if isinstance(array, jax.Array):
        return np.asarray(checksums({"": array}))[0].tolist()
    return checksum(np.asarray(array)).tolist()


ARRAYS = {
    "float32": np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32),
    "bfloat16": jnp.arange(128, dtype=jnp.bfloat16).reshape(8, 16),
    "int32": np.arange(-64, 64, dtype=np.int32).reshape(8, 16),
    "uint32": np.arange(128, dtype=np.uint32).reshape(8, 16) * np.uint32(2**25),
    "bool": np.random.default_rng(1).integers(0, 2, (8, 16)).astype(bool),
}


@pytest.mark.parametrize("dtype", ARRAYS)
def test_a_checksum_does_not_depend_on_the_sharding(dtype):
    whole = sums_of(np.asarray(ARRAYS[dtype]))
    for devices, spec in ((mesh(8), ("x",)), (mesh(8), (None, "x")), (mesh(2, 4), ("y", "x"))):
        sharding = NamedSharding(devices, PartitionSpec(*spec))
        assert sums_of(jax.device_put(ARRAYS[dtype], sharding)) == whole


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5])
@pytest.mark.parametrize("start", [0, 1, 15])  # wherever it lies in memory
def test_blocks_of_an_array_in_memory_add_up_to_the_sums_of_the_whole(size, start):
    array = np.random.default_rng(size).normal(size=start + size).astype(np.float32)[start:]
    assert sums_of(array) == sums_of(jnp.asarray(array))


@pytest.mark.parametrize("cut", [1, BLOCK - 1, BLOCK + 3])
def test_parts_of_an_array_add_up_to_the_sums_of_the_whole(cut):
    array = np.random.default_rng(cut).normal(size=2 * BLOCK + 5).astype(np.float32)
    parts = checksum(array[:cut]) + checksum(array[cut:], first=cut)
    assert parts.tolist() == sums_of(array)


def test_of_a_sharded_array_only_sums_of_rows_are_gathered_for_its_checksum():
    sharding = NamedSharding(mesh(8), PartitionSpec(None, "x"))
    array = jax.ShapeDtypeStruct((64, 1024), np.float32, sharding=sharding)
    program = _of_devices.lower([array]).compile().as_text()
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", program)
    assert gathered
    assert all(np.prod([int(n) for n in shape.split(",")]) <= 64 * 8 for shape in gathered)


def test_any_single_flipped_bit_changes_both_sums():
    array = ARRAYS["float32"]
    whole = sums_of(array)
    for place in range(0, array.size, 7):
        for bit in range(32):
            words = array.view(np.uint32).copy()
            words.flat[place] ^= np.uint32(1 << bit)
            first, second = sums_of(jnp.asarray(words.view(np.float32)))
            assert first != whole[0] and second != whole[1]


def test_order_and_shape_of_the_elements_matter():
    array = ARRAYS["float32"]
    swapped = array.copy()
    swapped[0, 0], swapped[3, 5] = array[3, 5], array[0, 0]
    assert sums_of(swapped) != sums_of(array)
    assert sums_of(np.roll(array, 1)) != sums_of(array)
    assert sums_of(np.zeros(4, np.float32)) != sums_of(np.zeros(5, np.float32))
    assert sums_of(np.float32(1)) == sums_of(np.ones(1, np.float32))


# Saved states


def make_state(seed: int) -> TrainState:
    """Arrays of every kind that a state holds, the largest of which fills files of its own."""
    model = nnx.Linear(64, 48, rngs=nnx.Rngs(seed))
    slots = {"mu": nnx.Linear(64, 48, rngs=nnx.Rngs(seed + 100)), "count": jnp.uint32(seed)}
    extra = {"mask": jnp.arange(64) % 3 == 0}
    counters = dict.fromkeys(("skipped", "skipped_in_a_row"), jnp.int32(0))
    mean = jnp.float32(seed)
    return TrainState(jnp.int32(seed), model, slots, None, extra, mean, **counters)


def arrays_of(state: TrainState) -> dict[str, np.ndarray]:
    parts = state_parts(state).items()
    return {f"{part}/{name}": np.asarray(x) for part, leaves in parts for name, x in leaves.items()}


def same(state: TrainState, other: TrainState) -> bool:
    ours, theirs = arrays_of(state), arrays_of(other)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(value, theirs[name]) for name, value in ours.items()
    )


PROVENANCE = Provenance.of(base_config(), "fingerprint")


def save(workdir: Path, *steps: int, **keep: int) -> None:
    with Checkpoints(str(workdir), **{"keep_last": 9, **keep}) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), PROVENANCE)


def restore_latest(workdir: Path) -> TrainState:
    with Checkpoints(str(workdir), keep_last=9) as checkpoints:
        return checkpoints.restore_latest(make_state(0), lambda provenance: None)[0]


def steps_in(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


# Every way to damage a file: contents -> contents, None for deleting it.
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "flipped": lambda old: old[: len(old) // 2] + bytes([old[len(old) // 2] ^ 8])
    + old[len(old) // 2 + 1 :],
    "cut": lambda old: old[: len(old) // 2],
    "deleted": lambda old: None,
}  # fmt: skip


def damage(files: list[Path], change: Callable[[bytes], bytes | None]) -> None:
    for path in files:
        contents = change(path.read_bytes())
        if contents is None:
            path.unlink()
        else:
            path.write_bytes(contents)


def kinds(folder: Path) -> dict[str, list[str]]:
    """The files of a checkpoint by what they are: names made of hashes are one kind."""
    found: dict[str, list[str]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        found.setdefault(re.sub(r"[0-9a-f]{32}", "*", name), []).append(name)
    return found


# Files without which arrays or meta are lost. What the others say is proven by the arrays.
NEEDED = {
    "meta/metadata", "arrays/manifest.ocdbt", "arrays/d/*", "arrays/ocdbt.process_0/d/*",
}  # fmt: skip


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir with checkpoints of steps 4 and 6."""
    workdir = tmp_path_factory.mktemp("pristine")
    save(workdir, 4, 6)
    return workdir


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_file_of_any_kind_is_noticed_or_changes_nothing(pristine, tmp_path, how):
    original = pristine / "checkpoints" / "6"
    broken = tmp_path / "checkpoints" / "6"
    unnoticed = set()
    for kind, names in kinds(original).items():
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(original, broken)
        damage([broken / name for name in names], DAMAGES[how])
        (saved,) = find_checkpoints(str(tmp_path), None)
        try:
            assert same(read_state(saved, make_state(0)), make_state(6)), kind
            unnoticed.add(kind)
        except Damaged as error:
            assert "cannot be read" in str(error) or "is not what was saved" in str(error)
    assert kinds(original).keys() >= NEEDED and not unnoticed & NEEDED


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(pristine, tmp_path, capsys):
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "checkpoints" / "6"
    damage([folder / "meta" / "metadata"], DAMAGES["cut"])
    assert same(restore_latest(tmp_path), make_state(4))
    (warning,) = capsys.readouterr().out.splitlines()
    for part in (str(folder), "meta cannot be read", "that of step 4, 2 steps before", "damaged"):
        assert part in warning
    assert steps_in(tmp_path) == ["4", "6.damaged"]
    save(tmp_path, 6)
    assert same(restore_latest(tmp_path), make_state(6))
    assert capsys.readouterr().out == ""


def test_with_no_sound_checkpoint_nothing_is_touched(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    for step in "46":
        damage([tmp_path / "checkpoints" / step / "meta" / "metadata"], DAMAGES["deleted"])
    with pytest.raises(UserError, match=r"no checkpoint is sound .*/6: meta.*/4: meta.*--workdir"):
        restore_latest(tmp_path)
    assert steps_in(tmp_path) == ["4", "6"]


def test_a_half_written_checkpoint_is_named_and_gone_once_its_step_is_saved(
    pristine, tmp_path, capsys
):
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp" / "arrays").mkdir(parents=True)
    assert same(restore_latest(tmp_path), make_state(6))
    assert "the save of step 8 was cut off" in capsys.readouterr().out
    save(tmp_path, 8)
    assert steps_in(tmp_path) == ["4", "6", "8"]
    assert same(restore_latest(tmp_path), make_state(8))


def test_a_state_comes_back_on_other_devices(tmp_path):
    # Eight replicas share the writing of the table: it is large enough.
    table = {"table": jnp.arange(2**20, dtype=jnp.float32).reshape(1024, 1024)}
    state = replace(make_state(3), extra=table)
    eight = jax.device_put(state, NamedSharding(mesh(8), PartitionSpec()))
    kernel = NamedSharding(mesh(8), PartitionSpec("x"))
    eight.model.kernel[...] = jax.device_put(eight.model.kernel[...], kernel)
    with Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(3, eight, PROVENANCE)
    for devices in (1, 2, 4):
        place = NamedSharding(mesh(devices), PartitionSpec())
        target = jax.tree.map(
            lambda leaf, place=place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            state,
        )
        (saved,) = find_checkpoints(str(tmp_path), 3)
        restored = read_state(saved, target)
        assert same(restored, state)
        assert restored.model.kernel[...].sharding.num_devices == devices


def test_the_last_n_and_every_mth_are_kept(tmp_path):
    save(tmp_path, 2, 3, 4, 5, 6, 7, keep_last=2, keep_every_steps=4)
    assert steps_in(tmp_path) == ["4", "6", "7"]


def test_other_arrays_are_no_damage(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    (saved,) = find_checkpoints(str(tmp_path), 6)
    other = make_state(0)
    other.extra = {"mask": jnp.zeros(65, bool)}
    with pytest.raises(UserError, match=r"other arrays.*extra/mask"):
        read_state(saved, other)


# Saves that fail


def wait_for_error(checkpoints: Checkpoints) -> None:
    for _ in range(200):
        checkpoints.check()
        time.sleep(0.05)
    pytest.fail("no error came")


def test_a_save_that_fails_in_the_background_stops_the_run_at_the_next_check(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    message = rf"{tmp_path}.*cannot be saved.*No space left.*same command"
    with pytest.raises(UserError, match=message), Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(1, make_state(1), PROVENANCE)
        checkpoints.wait()
        monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "finalize", full)
        checkpoints.save(2, make_state(2), PROVENANCE)
        wait_for_error(checkpoints)
    monkeypatch.undo()
    assert same(restore_latest(tmp_path), make_state(1))


def test_a_folder_that_is_gone_is_named(tmp_path):
    message = rf"{tmp_path}.*cannot be saved"
    with pytest.raises(UserError, match=message), Checkpoints(str(tmp_path)) as checkpoints:
        checkpoints.save(1, make_state(1), PROVENANCE)
        checkpoints.wait()
        (tmp_path / "checkpoints").rename(tmp_path / "away")
        (tmp_path / "checkpoints").touch()
        checkpoints.save(2, make_state(2), PROVENANCE)
        wait_for_error(checkpoints)


# Runs


def run(dataset: str, workdir: Path, **changes: str) -> TrainState:
    steps = dict(schedule__total_steps="4", checkpoint__every_steps="2")
    return pretrain(small.config("nepa", dataset, **(steps | changes)), str(workdir))


@pytest.fixture(scope="module")
def finished(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainState]:
    """The workdir of a run of four steps with checkpoints of 2 and 4, and its last state."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, run(dataset, workdir)


def test_a_run_goes_on_from_before_the_damage_to_the_same_end(dataset, finished, tmp_path, capsys):
    workdir, end = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints" / "4"
    largest = max(named_leaves(end.model).values(), key=lambda leaf: leaf.size)
    weights = np.asarray(largest).tobytes()
    files = [newest / name for name in kinds(newest)["arrays/ocdbt.process_0/d/*"]]
    (holder,) = (path for path in files if weights in path.read_bytes())
    damage([holder], lambda old: old.replace(weights, DAMAGES["flipped"](weights)))
    assert load_weights(str(tmp_path), ema=False).step == 2
    assert newest.is_dir()  # only the run itself sets anything aside
    assert same(run(dataset, tmp_path), end)
    said = capsys.readouterr().out
    assert "warning: damaged checkpoint" in said and "resuming at step 2" in said
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert steps_in(tmp_path) == ["2", "4", "4.damaged"]


def first_state(dataset: str, workdir: Path, **changes: str) -> TrainState:
    """What a run begins with."""
    with ExitStack() as stack:
        return set_up(small.config("nepa", dataset, **changes), str(workdir), stack).initial_state()


def test_a_run_begins_with_the_weights_of_another(dataset, finished, tmp_path, capsys):
    workdir, end = finished
    state = first_state(dataset, tmp_path, run__init_from=str(workdir), model__drop_path_rate="0.1")
    said = capsys.readouterr().out
    from_there = f"starting from the weights of step {int(end.step)} of {workdir}: step 0, fresh"
    assert f"{from_there} optimizer, with model.drop" in said
    assert int(state.step) == 0
    ours, theirs = arrays_of(state), arrays_of(end)
    for name in (name for name in theirs if name.startswith("model/")):
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        np.testing.assert_array_equal(ours[name.replace("model", "ema", 1)], theirs[name])
    assert not any(ours[name].any() for name in ours if "/mu/" in name)


def test_a_run_beside_imported_weights_begins_with_them(dataset, finished, tmp_path, capsys):
    weights = load_weights(str(finished[0]), ema=False)
    save_weights(str(tmp_path), 0, weights.model, weights.provenance)
    with pytest.raises(UserError, match="holds imported weights already"):
        first_state(dataset, tmp_path, run__init_from=str(finished[0]))
    state = first_state(dataset, tmp_path)
    assert f"starting from the weights of {tmp_path}: step 0" in capsys.readouterr().out
    for name, leaf in named_leaves(weights.model).items():
        np.testing.assert_array_equal(named_leaves(state.model)[name], leaf, err_msg=name)
    run(dataset, tmp_path)
    assert load_weights(str(tmp_path), ema=True).step == 4


def test_weights_that_do_not_fit_are_one_clear_error(dataset, finished, tmp_path):
    start = str(finished[0])
    with pytest.raises(UserError, match=r"finished0 does not fit .* has shape .* expected"):
        first_state(dataset, tmp_path / "a", run__init_from=start, model__embed_dim="64")
    with pytest.raises(UserError, match=r"finished0 does not fit .*missing .*q_norm"):
        first_state(dataset, tmp_path / "b", run__init_from=start, model__qk_norm_affine="true")
    with pytest.raises(UserError, match=r"nowhere: does not exist"):
        first_state(dataset, tmp_path / "c", run__init_from="nowhere")


class Made:
    """A leaf that counts how many like it are in memory."""

    shape, dtype = (8, 8), np.dtype(np.float32)
    alive, most = 0, 0

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        Made.alive += 1
        Made.most = max(Made.most, Made.alive)
        array = np.full(self.shape, Made.alive, np.float32)
        weakref.finalize(array, self.gone)
        return array

    @staticmethod
    def gone() -> None:
        Made.alive -= 1


def test_weights_are_made_as_they_are_written(tmp_path):
    shapes = nnx.eval_shape(
        lambda: nnx.List([nnx.Linear(8, 8, use_bias=False, rngs=nnx.Rngs(0)) for _ in range(9)])
    )
    model = jax.tree.map(lambda _: Made(), shapes)
    save_weights(str(tmp_path), 0, model, PROVENANCE)
    assert 1 <= Made.most <= 3 and not Made.alive
    (saved,) = find_checkpoints(str(tmp_path), None)
    found = saved.lazy_leaves("model", named_leaves(shapes))
    assert all(np.asarray(array)[0, 0] in (1, 2, 3) for array in found.values())


@pytest.mark.parametrize("error", [UserError("a file is cut off"), OSError(28, "No space left")])
def test_weights_that_cannot_be_saved_leave_no_checkpoint(tmp_path, error):
    class Failing(Made):
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            raise error

    model = jax.tree.map(lambda _: Failing(), nnx.eval_shape(lambda: make_state(0).model))
    message = r"^a file is cut off$|checkpoints/0: cannot be saved \(OSError.*No space.*free space"
    with pytest.raises(UserError, match=message):
        save_weights(str(tmp_path), 0, model, PROVENANCE)
    assert not (tmp_path / "checkpoints").exists()
    save_weights(str(tmp_path), 0, make_state(0).model, PROVENANCE)
    assert steps_in(tmp_path) == ["0"]


def test_weights_of_any_step_can_be_had(finished):
    workdir, _ = finished
    assert load_weights(str(workdir), ema=True).step == 4
    assert load_weights(str(workdir), ema=True, step=2).step == 2
    assert load_weights(str(workdir / "checkpoints" / "2"), ema=False).step == 2
    with pytest.raises(UserError, match=r"no checkpoint of step 3; choose from 2, 4"):
        load_weights(str(workdir), ema=False, step=3)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        load_weights(str(workdir / "checkpoints"), ema=False)


def test_no_checkpoint_holds_a_state_that_is_not_finite(dataset, tmp_path, monkeypatch):
    (tmp_path / "nan_objective.py").write_text(
        "from nepa_jax.objectives.nepa import *\n"
        "from nepa_jax.objectives import nepa\n"
        "def loss(model, extra, batch, key):\n"
        "    value, aux = nepa.loss(model, extra, batch, key)\n"
        "    return value * float('nan'), aux\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RunDiverged, match="the last 4 of 4 steps"):
        run(dataset, tmp_path / "run", objective__name="nan_objective")
    assert not (tmp_path / "run" / "DONE").exists()
    trained = load_weights(str(tmp_path / "run"), ema=False)
    assert trained.step == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.model))
