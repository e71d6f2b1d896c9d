"""The guard of a step's time: a ratio against what is known, and what a jaxlib cannot do. Nothing is timed."""

import jax
import pytest
import small

from nepa_jax.bench import guard


@pytest.fixture
def run(monkeypatch):
    config = small.resolved("nepa")
    device = jax.devices()[0].device_kind
    release = ".".join(jax.__version__.split(".")[:2])
    monkeypatch.setattr(guard, "KNOWN", {(release, device, guard.name_of(config)): 2.0})
    return config


def test_a_step_is_named_by_what_its_time_depends_on(run):
    assert guard.name_of(run) == "nepa 32 wide, 2 deep, 16 patches, batch 8"


@pytest.mark.parametrize(
    ("ratio", "said"), [(1.0, "as it should be"), (3.9, "as it should be"), (4.2, "SLOW: 2.1 times")]
)  # fmt: skip
def test_only_a_ratio_far_above_the_known_one_is_slow(run, ratio, said):
    assert guard.verdict(run, ratio).startswith(said)


def test_of_an_unknown_step_it_says_so(run):
    run.data.batch_size = 16
    assert guard.verdict(run, 100.0).startswith("nothing known of jax")


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("pass", None),
        ("raise SystemExit(3)", "fails (exit code 3)"),
        ("import os; os.kill(os.getpid(), 9)", "crashes (signal 9)"),
        ("import time; time.sleep(60)", "does not end within 0.5 s"),
    ],
)
def test_a_program_that_crashes_or_never_ends_is_told_and_not_waited_for(monkeypatch, code, how):
    monkeypatch.setattr(guard, "MANY_AXES_S", 0.5 if "sleep" in code else 60)
    assert guard._tried(code) == how


def test_a_step_is_in_danger_by_its_own_arrays(monkeypatch):
    monkeypatch.setattr(guard, "_tried", lambda code: "crashes (signal 11)")
    six, seven = "f32[2,14,16,14,16,3]{5}", "bf16[1,2,14,16,14,16,3]{6}"
    assert guard.many_axes(f"a = {six} b = f32[8]").endswith("at most 6 axes and is in no danger")
    assert guard.many_axes(f"a = {six} b = {seven}").endswith("at most 7 axes and is in danger")
    monkeypatch.setattr(guard, "_tried", lambda code: None)
    assert guard.many_axes(six) == "jaxlib computes with 8 axes; this step has at most 6 axes"


def test_the_product_gives_seconds_of_a_flop(run, monkeypatch):
    monkeypatch.setattr(guard, "SIDES", {"cpu": 256})
    assert 1e-14 < guard.Product(run).run(0.0) < 1e-6
