"""The step compiled for TPUs by their own compiler, where that is installed; and what can go wrong."""

import importlib.metadata
import importlib.util
import json
import subprocess

import pytest
import small

from nepa_jax.base.errors import UserError
from nepa_jax.plan import compile as ahead
from nepa_jax.plan.chips import topology_of
from nepa_jax.plan.estimate import Plan

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu"
)
BATCH, WIDTH, HIDDEN = 1024, 512, 2048


def compiled(**changes: str) -> Plan:
    config = small.resolved(
        "nepa", data__batch_size=str(BATCH), model__embed_dim=str(WIDTH), model__num_heads="4",
        model__depth="4", run__dtype="bfloat16", run__remat="names", **changes,
    )  # fmt: skip
    return ahead.compiled(config, topology_of("v5e:2x2"), where=True)


@pytest.fixture(scope="module")
def plans() -> dict[int, Plan]:
    """By the size of fsdp."""
    return {fsdp: compiled(mesh__fsdp=str(fsdp)) for fsdp in (1, 4)}


@needs_compiler
def test_a_plan_by_the_compiler_adds_up(plans):
    plan = plans[1]
    assert plan.by == "compiler" and plan.fits and plan.compile_cpu_s > 0
    assert plan.hbm_gib == pytest.approx(sum(plan.memory_gib.values()))
    assert all(size >= 0 for size in plan.memory_gib.values())
    assert 1.0 <= plan.program_flops / plan.model_flops < 1.3
    assert 0 < plan.est_mfu < 1 and plan.est_step_ms > 0
    parts = sum(sum(row.values()) for row in plan.where.values())
    assert parts == pytest.approx(plan.est_step_ms)


@needs_compiler
def test_fully_sharded_state_takes_its_share_of_a_chip(plans):
    for kind in ("parameters", "optimizer", "average"):
        assert plans[4].memory_gib[kind] < 0.3 * plans[1].memory_gib[kind]
    assert plans[4].hbm_gib < plans[1].hbm_gib


@needs_compiler
def test_data_parallel_only_reduces(plans):
    assert set(plans[1].collectives) == {"all-reduce"}


@needs_compiler
def test_fully_sharded_moves_weights_and_never_activations(plans):
    """The activations of a chip's images are larger than any weight."""
    moved = plans[4].collectives
    assert "all-gather" in moved and "all-to-all" not in moved
    largest_weight, activations = 4 * WIDTH * HIDDEN, 2 * (BATCH // 4) * 16 * WIDTH
    assert moved["all-gather"]["largest"] <= largest_weight < 4 * activations


@needs_compiler
@pytest.mark.trial
def test_a_topology_that_the_compiler_refuses_is_one_line():
    with pytest.raises(
        UserError, match=r"--topology=v5e:3x7: the compiler knows no such topology"
    ) as told:
        ahead.compiled(small.resolved("nepa", data__batch_size="21"), topology_of("v5e:3x7"))
    assert "\n" not in str(told.value)


# Without it


def answered(monkeypatch, code: int, out: str, error: str = "") -> None:
    done = subprocess.CompletedProcess([], code, out, error)
    monkeypatch.setattr(ahead.subprocess, "run", lambda *args, **settings: done)


@pytest.mark.trial
@pytest.mark.parametrize(
    "name", ["v5e", "v5e:16", "v5e:16x", "v5e:0x4", "v3:2x2", "h100:8x8", "v5e:2x2x2x2", ""]
)
def test_what_is_no_topology_is_one_line_with_those_that_are(name):
    with pytest.raises(
        UserError, match=f"--topology={name}: .*v4, v5e, v5p, v6e, tpu7x.*v5e:16x16"
    ):
        topology_of(name)


def test_a_topology_has_its_devices():
    assert topology_of("v5e:16x16").num_devices == 256
    assert topology_of("v5p:2x2x4").num_devices == 16
    assert topology_of("tpu7x:2x2x1").num_devices == 8  # two to a chip


@pytest.mark.trial
def test_a_batch_that_does_not_divide_is_one_line_before_anything_is_compiled(monkeypatch):
    answered(monkeypatch, 1, "")
    with pytest.raises(
        UserError, match=r"data.batch_size = 10: 4 devices .*try --config.data.batch_size=8"
    ):
        ahead.compiled(small.resolved("nepa", data__batch_size="10"), topology_of("v5e:2x2"))


@pytest.mark.trial
def test_a_compiler_that_ends_its_process_is_one_line(monkeypatch):
    answered(monkeypatch, -6, "", "much\nF0000 Check failed: no such chips")
    with pytest.raises(
        UserError, match=r"--topology=v5e:2x2: .*ended with code -6: F0000 Check failed"
    ) as told:
        ahead.compiled(small.resolved("nepa"), topology_of("v5e:2x2"))
    assert "much" not in str(told.value)


@pytest.mark.trial
def test_what_the_compiler_refuses_is_said_with_the_topology(monkeypatch):
    answered(monkeypatch, 0, "noise\n" + json.dumps({"error": "mesh.fsdp = 3: no"}))
    with pytest.raises(UserError, match=r"--topology=v5e:2x2: mesh.fsdp = 3: no"):
        ahead.compiled(small.resolved("nepa"), topology_of("v5e:2x2"))


def versions(monkeypatch, libtpu: str | None, asked: str) -> None:
    def version(name: str) -> str:
        if name == "libtpu" and libtpu is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return libtpu if name == "libtpu" else "0.10.2"

    monkeypatch.setattr(ahead.importlib.metadata, "version", version)
    monkeypatch.setattr(ahead.importlib.metadata, "requires", lambda name: [asked])


@pytest.mark.trial
@pytest.mark.parametrize("found", ["0.0.50.1", "0.0.4", "0.0.421"])
def test_a_compiler_of_another_version_is_one_line(monkeypatch, found):
    versions(monkeypatch, found, 'libtpu==0.0.42.*; extra == "tpu"')
    with pytest.raises(
        UserError, match=rf"libtpu {found} is installed.*try: pip install 'libtpu==0.0.42.\*'"
    ):
        ahead.has_compiler()


@pytest.mark.parametrize("found", ["0.0.42", "0.0.42.1"])
def test_the_version_that_jax_asks_for_is_taken(monkeypatch, found):
    versions(monkeypatch, found, 'libtpu==0.0.42.*; extra == "tpu"')
    assert ahead.has_compiler()


def test_without_a_compiler_there_is_none(monkeypatch):
    versions(monkeypatch, None, 'libtpu==0.0.42.*; extra == "tpu"')
    assert not ahead.has_compiler()


def test_the_jax_that_is_installed_says_which_it_wants():
    assert ahead.wanted_compiler().count(".") >= 2


@pytest.mark.parametrize(
    ("text", "gib"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 20.5G of 15.75G hbm. Exceeded by 4.7G.", 20.5),
        ("memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G).", 0.5),
        ("INTERNAL: something else", None),
    ],
)
def test_what_a_program_would_need_is_read_from_the_error(text, gib):
    assert ahead._needed_gib(text) == gib
