"""What is told of a run, from the files that it leaves."""

import json
import os
import random
import time

import pytest
import told

from nepa_jax.evals import results
from nepa_jax.report import page, story
from nepa_jax.report.commands import commands_of
from nepa_jax.report.evaluations import read_evaluations
from nepa_jax.report.workdirs import find_workdirs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return told.write_workdir(tmp_path_factory.mktemp("runs") / "a")


def tell(workdir, now=None):
    return story.story_of("a", workdir, 1000, now or time.time())


def test_a_run_that_is_done(run):
    found = tell(run)
    assert (found["state"], found["step"], found["total"], found["lines"]) == (
        "done",
        2000,
        2000,
        200,
    )
    assert found["method"] == "nepa" and found["batch_size"] == 8 and found["notes"] == []
    assert set(found["curves"]) == set(told.metrics_of(1, 2, random.Random())) - {"step"}
    assert found["latest"]["train/lr"] == found["curves"]["train/lr"]["y"][-1]
    assert sum(found["shares"].values()) == pytest.approx(1)


def test_a_restart_is_where_the_account_goes_on(run):
    assert tell(run)["restarts"] == [{"step": 800, "again": 30, "away_s": pytest.approx(90)}]


def test_a_restart_is_also_where_the_log_goes_back(tmp_path):
    told.write_log(tmp_path, [{"step": s, "train/loss": 1.0} for s in (10, 20, 30, 20, 30, 40)])
    found = tell(tmp_path)
    assert found["restarts"] == [{"step": 20, "again": 2, "away_s": None}]
    assert found["curves"]["train/loss"]["x"] == [10, 20, 30, 40]


def test_evaluations_by_layer_with_the_untrained_encoder(run):
    knn, rank = tell(run)["evaluations"]
    assert knn["probe"] == "knn" and knn["per_cent"] and knn["number"] == pytest.approx(0.32)
    assert knn["by_layer"][2] == [2, pytest.approx(0.32)] and knn["layer"] == 2
    assert knn["untrained_by_layer"][0] == [0, 0.15] and knn["chance"] == 0.1
    assert not rank["per_cent"] and rank["chance"] is None and rank["best"] is None
    assert tell(run)["results"] == [["probe", "value"], ["knn", "0.32"], ["a, b", "0.1"]]
    assert tell(run)["card"].startswith("# What")


def test_what_eval_writes_is_what_the_page_reads(tmp_path):
    rows = [{"layer": n, "pool": "mean", "top1": n / 10, "held_out": n / 20} for n in range(3)]
    protocol = {"train_images": 30, "test_images": 10}
    found = results.outcome(protocol, rows, rows, chance=0.25)
    facts = dict(weights="runs/a", step=7, checksum="c", data="data/photos", train_split="train",
                 test_split="validation", attention="causal")  # fmt: skip
    saved = results.report("knn", facts, found, results.outcome(protocol, rows[:2], rows[:2]))
    results.write(tmp_path / "eval", saved)
    notes = []
    told_of = read_evaluations(tmp_path / "eval", notes)
    (knn,) = told_of.reports
    assert notes == [] and (knn["number"], knn["layer"], knn["chance"]) == (0.2, 2, 0.25)
    assert knn["by_layer"] == [[0, 0.0], [1, 0.1], [2, 0.2]] and knn["untrained"] is None
    assert told_of.table[0][0] == "probe" and told_of.table[1][:3] == ["knn", "runs/a", "7"]


def test_the_best_checkpoint_of_a_run_on_labels_is_told(tmp_path):
    told.write_evaluations(tmp_path)
    told.write_log(tmp_path, [{"step": 1, "train/loss": 1.0}])
    best = {"step": 40, "score": 0.75, "by": "eval/top1"}
    (tmp_path / "eval" / "best.json").write_text(json.dumps(best))
    assert tell(tmp_path)["best"] == best and tell(tmp_path)["evaluations"] == []
    assert not any("best.json" in note for note in tell(tmp_path)["notes"])


def test_alarms_say_from_when_to_when(tmp_path):
    rows = [{"step": s, "time/step_s": 1.0, "time/data_wait_s": 0.5 if s in (1, 30, 50) else 0.0}
            for s in (1, 10, 20, 30, 40, 50, 60)]  # fmt: skip
    told.write_log(tmp_path, rows)
    (alarm,) = tell(tmp_path)["alarms"]  # the first step always waits
    assert (alarm["first"], alarm["last"], alarm["count"]) == (30, 50, 2)
    assert "waits for data" in alarm["text"]


def test_an_objectives_own_alarms_ring(tmp_path):
    run = told.write_workdir(tmp_path / "a")
    told.write_log(
        run, [{"step": 5, "train/target_std": 0.5}, {"step": 9, "train/target_std": 0.01}]
    )
    (alarm,) = tell(run)["alarms"]
    assert alarm["first"] == 9 and "collapse" in alarm["text"]


def test_an_alarm_that_cannot_be_asked_of_all_rows_at_once_is_asked_of_each(run):
    from nepa_jax.objectives.base import Alarm
    from nepa_jax.report.alarms import _rings
    from nepa_jax.run.log import read_log

    log = read_log(run / "metrics.jsonl")
    alarm = Alarm(lambda row: row["train/lr"] > 5e-4 and row["data/queue"] == 4, "")
    assert _rings(alarm, log).tolist() == (log.columns["train/lr"] > 5e-4).tolist()


@pytest.mark.trial
def test_a_foreign_objectives_module_is_not_imported(tmp_path):
    run = told.write_workdir(tmp_path / "a")
    config = json.loads((run / "config.json").read_text())
    config["objective"]["name"] = "os.path"
    (run / "config.json").write_text(json.dumps(config))
    assert any("os.path" in note for note in tell(run)["notes"])


def beat(workdir, seconds_ago):
    holder = dict(run="1", host="h", boot="b", pid=1, beat=time.time() - seconds_ago)
    (workdir / "run.lock").write_text(json.dumps(holder))


@pytest.mark.parametrize(
    ("beats_ago", "line_ago", "state"),
    [(5, 5, "running"), (5, 3600, "quiet"), (600, 600, "lost"), (None, 600, "stopped")],
)
def test_the_state_is_told_by_the_signs_of_life(tmp_path, beats_ago, line_ago, state):
    told.write_log(tmp_path, [{"step": s, "time/step_s": 0.5} for s in (10, 20, 30)])
    os.utime(tmp_path / "metrics.jsonl", (time.time() - line_ago,) * 2)
    (tmp_path / "run.lock").write_text(" ")
    if beats_ago is not None:
        beat(tmp_path, beats_ago)
    assert tell(tmp_path)["state"] == state


@pytest.mark.trial
@pytest.mark.parametrize(
    "name", ["config.json", "goodput.json", "eval/0.json", "eval/results.csv", "run.lock"]
)
@pytest.mark.parametrize(
    "content", [b"", b"[1]", b"{}", b'{"metric": 1}', b"\xff\xfe", b"[" * 100_000, b"null"]
)
def test_files_that_are_not_what_they_should_be_cost_only_themselves(tmp_path, name, content):
    run = told.write_workdir(tmp_path / "a", steps=200)
    (run / name).write_bytes(content)
    found = tell(run)
    assert found["lines"] == 20
    assert page.html_of(
        {"title": "a", "made": 0.0, "version": "", "runs": [found | {"pictures": []}]}
    )


@pytest.mark.trial
@pytest.mark.parametrize(
    "wrong", [{"layer": "<b>", "top1": 0.1}, {"layer": 1, "top1": "high"}, {"layer": 1}, 5]
)
def test_a_report_whose_rows_are_no_numbers_is_named_and_left_out(tmp_path, wrong):
    run = told.write_workdir(tmp_path / "a", steps=200)
    told.write_evaluations(run, told.report("knn", by_layer=[wrong]), told.report("logreg"))
    found = tell(run)
    assert [each["probe"] for each in found["evaluations"]] == ["logreg"]
    assert any("0.json: is no report" in note for note in found["notes"])


@pytest.mark.trial
def test_damaged_lines_are_told_on_the_page(tmp_path):
    told.write_log(tmp_path, [{"step": 1, "a": 1.0}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('no line\n{"step": 2, "a": 1.0}\n{"step": 3, "a')
    found = tell(tmp_path)
    assert found["step"] == 2 and any("1 of 4 lines are damaged" in note for note in found["notes"])


def test_commands_are_quoted_for_a_shell(tmp_path):
    run = told.write_workdir(tmp_path / "it's; rm -rf")
    commands = {each["what"]: each["command"] for each in tell(run)["commands"]}
    assert "Go on" not in commands  # it is done
    assert commands["Train it again"].endswith("it'\"'\"'s; rm -rf-again'")
    (run / "DONE").unlink()
    assert "Go on" in {each["what"] for each in tell(run)["commands"]}


def test_a_run_on_labels_is_gone_on_with_by_its_own_verb(tmp_path):
    name = {"objective.name": "nepa_jax.objectives.supervised"}
    for config, verb in (
        ({"objective.name": "nepa_jax.objectives.mae"}, "pretrain"),
        (name, "finetune"),
    ):
        going_on, *_ = commands_of(tmp_path, config, [])
        assert going_on["command"] == f"nepa-jax {verb} --config={tmp_path} --workdir={tmp_path}"


# Which runs


def test_runs_below_a_folder_are_found_by_what_they_hold(tmp_path):
    for name in ("b", "a/deep", "a/checkpoints/no", ".hidden/no"):
        told.write_log(tmp_path / name, [{"step": 1}])
    told.write_log(tmp_path / "b/checkpoints/5", [{"step": 1}])
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/config.json").write_text("{}")
    assert list(find_workdirs([str(tmp_path)])) == ["a/deep", "b"]
    assert list(find_workdirs([str(tmp_path / "b")])) == ["b"]


def test_runs_that_are_named_twice_are_shown_once(tmp_path):
    for name in ("a", "b"):
        told.write_log(tmp_path / name, [{"step": 1}])
    assert list(find_workdirs([f"{tmp_path}/b", str(tmp_path), f"{tmp_path}/a/"])) == ["b", "a"]
