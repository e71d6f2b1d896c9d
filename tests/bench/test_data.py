"""The benchmark of the input pipeline gives its figures, and a table of them."""

import math
from collections.abc import Iterator

import pytest
import small

from nepa_jax.bench import data, speed
from nepa_jax.bench.verb import table_of


@pytest.fixture(autouse=True)
def short(monkeypatch) -> None:
    for name, value in dict(ROUNDS=1, IMAGES=8, REST_S=0.02).items():
        monkeypatch.setattr(speed, name, value)
    for name, value in dict(SAMPLE=8, BARE_SECONDS=0.1).items():
        monkeypatch.setattr(data, name, value)


def figures(result: object) -> Iterator[float]:
    """All numbers in nested results."""
    if isinstance(result, dict | list | tuple):
        for value in result.values() if isinstance(result, dict) else result:
            yield from figures(value)
    elif isinstance(result, float | int):
        yield result


def test_bench_data_gives_rates_and_ratios(dataset, monkeypatch):
    monkeypatch.setattr(data, "_scaling", lambda config, cores: {})  # seconds of processes
    result = data.bench_data(small.config("nepa", dataset, data__augment="rand_augment"))
    assert all(math.isfinite(value) for value in figures(result))
    assert {"rates", "ratios", "start_s", "worker_mib", "cores", "load_average"} == result.keys()
    names = [line.split("  ")[0] for line in table_of(result).splitlines()]
    assert {"cores", "fast", "exact / pillow", "loader / bare loop", "workers"} < {*names}
    assert {"plain", "rand_augment", "rand_augment / plain"} < {*names}
