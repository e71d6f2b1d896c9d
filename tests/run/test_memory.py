"""A step that does not fit is told before it runs, with what does: compiled, not guessed."""

from types import SimpleNamespace

import jax
import pytest
import small

from nepa_jax.base.errors import UserError
from nepa_jax.mesh import make_mesh
from nepa_jax.objectives.base import load_objective
from nepa_jax.run import memory
from nepa_jax.run.memory import GIB, fitting, free_bytes, memory_is_told, needed_bytes
from nepa_jax.step import abstract_state


def program(gib: float) -> SimpleNamespace:
    """A compiled program that needs so much beside its arguments."""
    sizes = SimpleNamespace(
        temp_size_in_bytes=gib * GIB, output_size_in_bytes=5 * GIB, alias_size_in_bytes=5 * GIB
    )
    return SimpleNamespace(memory_analysis=lambda: sizes)


class Compiler:
    """Programs that need half as much with twice the parts, and a third under full remat."""

    def __init__(self, gib: float):
        self.gib = gib
        self.tried: list[tuple[int, str]] = []

    def __call__(self, config) -> SimpleNamespace:
        accum, remat = config.optim.accum_steps, config.run.remat
        self.tried.append((accum, remat))
        return program(self.gib / accum / (3 if remat == "full" else 1))


@pytest.fixture
def config():
    return small.resolved("nepa", data__batch_size="64")


@pytest.fixture(autouse=True)
def ten_gib_are_free(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 10 * GIB)


def test_what_fits_is_compiled_once(config):
    compiler = Compiler(9.9)
    assert needed_bytes(fitting(config, compiler, devices=8)) == pytest.approx(9.9 * GIB)
    assert compiler.tried == [(1, "none")]


@pytest.mark.trial
@pytest.mark.parametrize(
    "gib, remedy",
    [
        (15.0, "optim.accum_steps=2, which needs 7.5 GiB"),
        (35.7, "optim.accum_steps=4, which needs 8.9 GiB"),
        (200.0, "run.remat=full --config.optim.accum_steps=8, which needs 8.3 GiB"),
    ],
)
def test_what_does_not_fit_is_told_with_what_does(config, gib, remedy):
    with pytest.raises(UserError, match=f"needs {gib} GiB.*10.0 GiB are free") as told:
        fitting(config, Compiler(gib), devices=8)
    assert remedy in str(told.value)


@pytest.mark.trial
def test_where_nothing_fits_nothing_is_promised(config):
    with pytest.raises(UserError, match="a smaller model"):
        fitting(config, Compiler(1e4), devices=8)


def test_a_device_that_does_not_say_is_believed(config, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    fitting(config, Compiler(1e4), devices=8)


@pytest.mark.trial
def test_a_state_that_has_no_room_is_told_before_it_is_made():
    split = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    fits, large = (
        jax.ShapeDtypeStruct((GIB, n), jax.numpy.float32, sharding=split) for n in (2, 3)
    )
    memory.require_room({"weights": fits})
    with pytest.raises(UserError, match=r"need 12.0 GiB.*10.0 GiB are free"):
        memory.require_room({"weights": large})


def test_what_a_run_will_need_is_said_by_kind_beside_what_is_free(config):
    objective, mesh = load_objective(config.objective.name), make_mesh(config)
    state = abstract_state(config, objective, mesh)
    line = memory.expectation(config, state)
    assert line.startswith("memory per device, by formula: 0.0") and "\n" not in line
    for part in (
        "parameters",
        "optimizer",
        "average",
        "gradients",
        "activations",
        "10.00 GiB are free",
    ):
        assert part in line


def test_this_machine_says_what_it_has(monkeypatch):
    monkeypatch.undo()
    assert 0 < free_bytes() * jax.local_device_count() < 2**50


@pytest.mark.trial
def test_running_out_of_memory_is_one_line(config):
    text = "RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nstack of compiler"
    with (
        pytest.raises(UserError, match=r"ran out of memory.*accum_steps=2"),
        memory_is_told(config),
    ):
        raise jax.errors.JaxRuntimeError(text)
    with pytest.raises(jax.errors.JaxRuntimeError), memory_is_told(config):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
