"""What the bench verb refuses, and what it prints."""

import pytest
import small

from nepa_jax.base.errors import UserError
from nepa_jax.bench.verb import MEASURES, measure, table_of


@pytest.mark.parametrize("what", MEASURES)
def test_all_mistakes_of_a_config_are_told_before_anything_is_measured(what):
    config = small.config("mae", "", mesh__data="3", objective__decoder_depth="-1")
    with pytest.raises(UserError) as error:
        measure(what, config)
    for part in ("mesh = ", "objective.decoder_depth = -1"):
        assert part in str(error.value)


def test_a_result_has_units_and_words():
    text = table_of({"step_s": 0.25, "data_overhead": -0.035, "export_gb_per_s": 1.5})
    assert text.splitlines() == [
        "step_s           0.25 s               of a step on the devices, median",
        "data_overhead    -0.035               what loop and loader add to a step, as a share; below 0 is noise",
        "export_gb_per_s  1.5 GB/s of weights",
    ]


def test_the_parts_of_a_step_stand_in_a_table_below():
    row = {"forward": 1.0, "again": 0.0, "backward": 2.0}
    text = table_of({"step_s": 0.25, "where": {"gflop": {"qkv": row, "gelu": row}}})
    assert [line.split() for line in text.splitlines()[1:]] == [
        [],
        ["gflop", "forward", "again", "backward", "all", "share"],
        ["qkv", "1.00", "0.00", "2.00", "3.00", "50.0%"],
        ["gelu", "1.00", "0.00", "2.00", "3.00", "50.0%"],
        ["all", "2.00", "0.00", "4.00", "6.00"],
    ]


def test_the_rates_of_data_have_a_line_each():
    rate = {"images_per_s": 1234.5, "images_per_cpu_s": 678.9}
    result = {
        "cores": 2, "load_average": [0.5, 2.0], "rates": {"loader": rate},
        "ratios": {"loader / torch": 1.759, "loader / torch, wall": 1.5},
        "start_s": {"step 0, 2 workers": 0.5}, "worker_mib": {"private": 80.4},
    }  # fmt: skip
    assert table_of(result).splitlines() == [
        "cores                           2              load 0.5 before and 2.0 after",
        "loader                          1234 images/s  679 images per CPU s",
        "loader / torch                  1.76           of images per CPU s",
        "loader / torch, wall            1.50",
        "first batch, step 0, 2 workers  0.50 s",
        "memory per worker, private      80 MiB",
    ]
