"""What `nepa-jax plan` says, as a user meets it; with plans made by formula, which need no compiler."""

import json
from dataclasses import fields

import pytest
import small

from nepa_jax.cli import main
from nepa_jax.hosts.agree import COMPARE_TIMEOUT_S
from nepa_jax.plan import verb
from nepa_jax.plan.chips import CHIPS
from nepa_jax.plan.estimate import Plan

TOLD = {
    *("topology", "fits", "hbm_gib", "hbm_limit_gib", "program_flops", "model_flops"),
    *("collectives", "est_step_ms", "est_mfu", "compile_s", "overrides"),
}


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    monkeypatch.setattr(verb, "has_compiler", lambda: False)


def plan(capsys, *options: str, **changes: str) -> tuple[str, str]:
    """What stands on stdout and stderr."""
    main(["plan", *small.arguments("nepa", "", **changes), *options])
    told = capsys.readouterr()
    return told.out, told.err


def refused(capsys, *options: str, **changes: str) -> str:
    with pytest.raises(SystemExit) as stop:
        plan(capsys, *options, **changes)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_json_has_an_object_with_the_promised_keys_for_each_topology(capsys):
    out, _ = plan(capsys, "--topology=v5e:2x4", "--topology=v4:2x2x1", "--json")
    found = json.loads(out)
    assert [each["topology"] for each in found] == ["v5e:2x4", "v4:2x2x1"]
    for each in found:
        assert TOLD <= each.keys() == {field.name for field in fields(Plan)}
        assert each["fits"] and each["overrides"] == [] and each["hbm_gib"] < each["hbm_limit_gib"]


def test_without_a_compiler_figures_are_by_formula_and_it_is_said_how_to_get_one(capsys):
    out, error = plan(capsys, "--topology=v5e:2x4")
    assert "by formula" in out and "fits" in out and "at least" in out and "estimated" in out
    assert "pip install 'libtpu==" in error


def test_what_does_not_fit_is_told_with_options_that_make_it_fit(capsys, monkeypatch):
    changes = dict(data__batch_size="4096", model__depth="8")
    whole = json.loads(plan(capsys, "--topology=v5e:2x4", "--json", **changes)[0])[0]
    tight = CHIPS["v5e"]._replace(hbm_gib=0.5 * whole["hbm_gib"])
    monkeypatch.setitem(CHIPS, "v5e", tight)
    out, _ = plan(capsys, "--topology=v5e:2x4", "--json", **changes)
    [found] = json.loads(out)
    assert not found["fits"] and found["overrides"]
    [again] = json.loads(
        plan(capsys, "--topology=v5e:2x4", "--json", *found["overrides"], **changes)[0]
    )
    assert again["fits"]
    assert "DOES NOT FIT" in plan(capsys, "--topology=v5e:2x4", **changes)[0]


def test_a_search_shows_the_best_choices_the_fastest_first(capsys):
    out, _ = plan(capsys, "--topology=v5e:2x4", "--search", "--json", data__batch_size="4096")
    [found] = json.loads(out)
    times = [each["est_step_ms"] for each in found["front"]]
    assert times == sorted(times) and found["overrides"] == found["front"][0]["overrides"]
    assert all(each["fits"] for each in found["front"])


def test_the_whole_run_is_its_steps_and_costs_its_chip_hours(capsys):
    options = ("--topology=v5e:2x4", "--hours", "--chips=16", "--price=2", "--json")
    [found] = json.loads(plan(capsys, *options)[0])
    run = found["run"]
    assert run["steps"] == 6 and run["chips"] == 16
    assert run["chip_hours"] == pytest.approx(6 * found["est_step_ms"] / 3.6e6 * 8)
    assert run["hours"] == pytest.approx(run["chip_hours"] / 16)
    assert run["cost"] == pytest.approx(2 * run["chip_hours"])


@pytest.mark.trial
@pytest.mark.parametrize(
    ("options", "changes", "parts"),
    [
        (["--topology=v9:2x2"], {}, ["--topology=v9:2x2", "v5e"]),
        (["--topology=v5e:2x4"], {"data__batch_size": "12"}, ["data.batch_size = 12", "8 devices", "try"]),
        (["--topology=v5e:2x4"], {"mesh__fsdp": "3"}, ["mesh", "8 device(s)"]),
        (["--topology=v5e:2x4"], {"model__patch_size": "5"}, ["model.patch_size = 5"]),
        (["--topology=v5e:2x4", "--where"], {}, ["--where", "pip install 'libtpu=="]),
        (["--topology=v5e:2x4", "--price=1"], {}, ["--hours"]),
        (["--topology=v5e:2x4", "--hours", "--price=-1"], {}, ["--price=-1"]),
        (["--topology=v5e:2x4", "--hours", "--chips=0"], {}, ["0: give a whole number"]),
        ([], {}, ["--topology"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_one_line(capsys, options, changes, parts):
    error = refused(capsys, *options, **changes)
    assert error.count("nepa-jax: error:") == 1 and "Traceback" not in error
    for part in parts:
        assert part in error


def test_a_step_that_takes_longer_to_compile_than_hosts_wait_is_warned_of(capsys):
    assert verb.SLOW_COMPILE_S == COMPARE_TIMEOUT_S
    verb.warn_of({"topology": "v5e:2x4", "compile_s": COMPARE_TIMEOUT_S - 1.0})
    assert not capsys.readouterr().err
    verb.warn_of({"topology": "v5e:2x4", "compile_s": COMPARE_TIMEOUT_S + 1.0})
    assert "v5e:2x4" in capsys.readouterr().err


def test_people_read_memory_work_time_and_parts(monkeypatch):
    monkeypatch.setattr(verb.importlib.metadata, "version", lambda name: "0.0.42.1")
    row = {"forward": 20.0, "again": 5.0, "backward": 15.0}
    told = verb.text_of(
        dict(
            topology="v5e:16x16", by="compiler", fits=True, hbm_gib=2.5, hbm_limit_gib=15.75,
            memory_gib={"parameters": 0.5, "extra": 0.0, "activations and temporaries": 2.0},
            program_flops=2.4e15, model_flops=2e15, est_step_ms=80.0, est_mfu=0.5,
            collectives={"all-gather": dict(count=97, bytes=2**30, largest=2**20, min_ms=5.5)},
            compile_s=90.0, compile_cpu_s=70.0, overrides=[], where={"qkv": row, "gelu": row},
        )
    )  # fmt: skip
    for part in (
        "v5e:16x16: 256 chips (TPU v5 lite), compiled by libtpu 0.0.42.1",
        "2.50 of 15.75 GiB per device, estimated: fits",
        "parameters 0.50, activations and temporaries 2.00",
        "of the model 2e+15 a step; of the program 2.4e+15, 1.20 times",
        "97 a step, 1,024.0 MiB (the largest 1.0), at least 5.5 ms on the links",
        "80.0 ms, MFU 0.50",
        "70 s of CPU",
    ):
        assert part in told
    assert told.splitlines()[-3].split() == ["qkv", "20.00", "5.00", "15.00", "40.00", "50.0%"]
    assert told.splitlines()[-1].split() == ["all", "40.00", "10.00", "30.00", "80.00"]
