"""Benchmarks of the step run to their end and give the figures they promise. Of the sizes nothing is said."""

import math

import pytest
import small

from nepa_jax.bench import guard
from nepa_jax.bench import step as bench


@pytest.fixture(autouse=True)
def short(monkeypatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "SECONDS_PER_ROUND", 0.0)
    monkeypatch.setattr(guard, "SIDES", {"cpu": 128})
    monkeypatch.setattr(guard, "many_axes", lambda program: "not tried")


def assert_sound(result: dict) -> None:
    found = [value for value in result.values() if isinstance(value, float)]
    assert len(found) >= 3 and all(map(math.isfinite, found))


def test_bench_step_gives_rates_and_memory():
    result = bench.bench_step(small.config("nepa", ""))
    assert_sound(result)
    assert result["images_per_s"] == pytest.approx(8 / result["step_s"])
    assert result["over_product"] > 0 and result["guard"].startswith("nothing known")
    assert result["model_tflops_per_s"] > 0 and result["peak_memory_gib"] > 0


def test_bench_step_tells_what_the_parts_of_the_model_do():
    result = bench.bench_step(small.config("nepa", ""), where=True)
    work, expected = result["where"], result["model_tflops_per_s"] * result["step_s"] * 1e3 / 8
    done = {unit: sum(sum(row.values()) for row in table.values()) for unit, table in work.items()}
    assert done["gflop"] == pytest.approx(expected, rel=0.1)  # of one of eight devices
    assert done["gib"] > 0 and "optimizer" in work["gib"]


def test_bench_e2e_compares_loop_and_data_with_the_bare_step(dataset):
    result = bench.bench_e2e(small.config("nepa", dataset))
    assert_sound(result)
    for what in ("loop", "data"):
        ratio = result[f"{what}_step_s"] / result["bare_step_s"]
        assert result[f"{what}_overhead"] == pytest.approx(ratio - 1)


def test_bench_checkpoint_gives_the_time_a_save_blocks():
    result = bench.bench_checkpoint(small.config("nepa", ""))
    assert_sound(result)
    assert 0 < result["blocked_s"] <= result["save_s"]
    assert result["share_of_save"] == pytest.approx(result["blocked_s"] / result["save_s"])


@pytest.mark.chaos
def test_bench_online_compares_steps_with_and_without_heads(dataset):
    config = small.config("mae", dataset, evals__bank_images="40", evals__test_images="16")
    config.evals.test_split = "train"  # of a benchmark nothing is learned
    result = bench.bench_online(config)
    assert_sound(result)
    share = result["evaluation_s"] / (1000 * result["step_s"])
    assert result["evaluation_over_steps"] == pytest.approx(share)
