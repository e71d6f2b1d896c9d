"""The benchmark of an export runs to its end and gives the figures it promises."""

import pytest
import small

from nepa_jax.bench import export as bench


def test_bench_export_gives_rates_of_export_copy_and_import(monkeypatch):
    monkeypatch.setattr(bench, "_alone", lambda function, *args: function(*args))
    result = bench.bench_export(small.config("nepa", ""))
    for what in ("export", "copy", "import"):
        rate = result["weights_gb"] / result[f"{what}_s"]
        assert result[f"{what}_gb_per_s"] == pytest.approx(rate) and rate > 0
    assert {"export_memory_over_size", "import_memory_over_size"} < result.keys()
