"""Benchmarks run to their end and give the figures they promise. Of the sizes nothing is said here."""

import math
from collections.abc import Iterator

import pytest
import small

from nepa_jax.bench import data as bench_data
from nepa_jax.bench import step as bench


@pytest.fixture(autouse=True)
def short(monkeypatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "SECONDS_PER_ROUND", 0.0)
    for name, value in dict(ROUNDS=1, IMAGES=8, SAMPLE=8, BARE_SECONDS=0.1).items():
        monkeypatch.setattr(bench_data, name, value)


def figures(result: object) -> Iterator[float]:
    """All numbers in nested results."""
    if isinstance(result, dict | list | tuple):
        for value in result.values() if isinstance(result, dict) else result:
            yield from figures(value)
    elif isinstance(result, float | int):
        yield result


def assert_sound(result: dict) -> None:
    found = list(figures(result))
    assert len(found) >= 3 and all(math.isfinite(value) for value in found)


def test_bench_step_gives_rates_and_memory():
    result = bench.bench_step(small.config("nepa", ""))
    assert_sound(result)
    assert result["images_per_s"] == pytest.approx(8 / result["step_s"])
    assert result["model_tflops_per_s"] > 0 and result["peak_memory_gib"] > 0


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


def test_bench_data_gives_rates_and_ratios(dataset, monkeypatch):
    monkeypatch.setattr(bench_data, "_scaling", lambda config, cores: {})  # seconds of processes
    result = bench.bench_data(small.config("nepa", dataset), against_torch=False)
    assert_sound(result)
    assert {"rates", "ratios", "start_s", "worker_mib", "cores", "load_average"} == result.keys()
