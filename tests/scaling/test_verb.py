"""``nepa-jax scaling fit`` from the command line: what it writes, and what it says of nonsense."""

import csv
import json

import numpy as np
import pytest
import told
from laws import TRUE, grid
from pictures import assert_picture

from nepa_jax.base.errors import UserError
from nepa_jax.cli import run
from nepa_jax.config import from_json
from nepa_jax.objectives.base import load_objective
from nepa_jax.scaling import law as laws
from nepa_jax.scaling.frontier import parabolas
from nepa_jax.scaling.points import Points, budgets_of, excluding
from nepa_jax.scaling.repeats import repeats, worth

HEAD = "parameters,training_flops,loss"


def rows_of(budgets=5, sizes=6, offset=0.0):
    parameters, samples = grid(budgets, sizes)
    noise = np.exp(np.random.default_rng(0).normal(0, 0.003, len(samples)))
    loss = laws.loss(TRUE, parameters, samples) * noise - offset
    return [(p, 6 * p * d, y) for p, d, y in zip(parameters, samples, loss, strict=True)]


def write(path, rows, head=HEAD):
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def points_of(**columns):
    n = len(columns["parameters"])
    empty = {name: np.full(n, np.nan) for name in ("unique", "error")}
    words = {"name": np.array([f"line {i}" for i in range(n)]), "objective": np.full(n, "")}
    return Points(**(words | empty | {k: np.asarray(v, float) for k, v in columns.items()}))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    rows = rows_of()
    rows[3] = (*rows[3][:2], 5.0)
    table = write(folder / "points.csv", [*rows, (1e6, 1e15, "nan")])
    run(["scaling", "fit", table, "--exclude=highest:1", f"--out={folder / 'law'}"])
    return folder / "law"


def test_a_fit_is_written_whole(fitted):
    found = json.loads((fitted / "fit.json").read_text())
    for name in ("surface", "huber"):
        law = found[name]
        assert law["alpha"] == pytest.approx(0.3, abs=0.05) and law["points"] == 29
        low, high = law["interval"]["alpha"]
        assert low < law["alpha"] < high
    held = found["holdout"]
    assert held["factor"] >= 8 and 0 < held["mean"] <= held["max"] < 0.03 < held["baseline"]
    assert abs(held["bias"]) <= held["mean"]
    assert [run["rule"][:8] for run in found["excluded"]] == ["the loss", "highest:"]
    assert found["without_exclusions"]["surface"]["points"] == 30
    for name in ("frontier", "isoflop", "residuals"):
        assert_picture(fitted / f"{name}.png")
        assert (fitted / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    table = list(csv.DictReader((fitted / "points.csv").open()))
    assert len(table) == 31 and sum(row["use"] == "fitted" for row in table) == 29
    page = (fitted / "report.md").read_text()
    assert (
        "highest:1" in page and "## Checklist" in page and "line 32: the loss is not finite" in page
    )


@pytest.mark.parametrize(
    ("rows", "head", "options", "said"),
    [
        ([r for r in rows_of() if r[0] == rows_of()[0][0]] * 9, HEAD, [], "1 size of model"),
        (rows_of(1, 10), HEAD, [], "1 budget of FLOPs"),
        (rows_of(offset=1.5), HEAD, [], "--offset=1"),
        (rows_of(), "n,c,loss", [], "has no column 'parameters', 'training_flops'"),
        (rows_of(), HEAD, ["--columns=a,b"], "give three names"),
        (rows_of(), HEAD, ["--exclude=outliers"], "is no rule"),
        (rows_of(), HEAD, ["--holdout=1"], "above 1"),
        (rows_of(), HEAD, ["--error=loss"], "all runs are of one"),
        ([(1e6, 1e15, "good")], HEAD, [], "line 2: loss = 'good' is no number"),
        ([(0, 1e15, 2.0)], HEAD, [], "line 2: parameters = 0 must be above 0"),
        ([], HEAD, [], "holds no row"),
    ],
)  # fmt: skip
def test_nonsense_is_answered_in_a_line_and_nothing_is_written(tmp_path, rows, head, options, said):
    table = write(tmp_path / "points.csv", rows, head)
    with pytest.raises(UserError, match=said) as error:
        run(["scaling", "fit", table, f"--out={tmp_path / 'law'}", *options])
    assert "\n" not in str(error.value) and not (tmp_path / "law").exists()


def test_a_budget_is_runs_of_about_the_same_flops():
    assert budgets_of(np.array([1e18, 9.9e18, 1.1e18, 1e19, 1.2e19, 1e20])).tolist() == [0, 1, 0, 1, 1, 2]  # fmt: skip


def test_rules_exclude_in_turn():
    points = points_of(parameters=[1, 1, 1, 1], samples=[1] * 4, flops=[1, 2, 3, 4], loss=[9, 5, 4, np.nan])  # fmt: skip
    kept, found = excluding(points, ["highest:1", "flops<3"])
    assert kept.tolist() == [False, False, True, False]
    assert [(run.name, run.rule[:7]) for run in found] == [("line 3", "the los"), ("line 0", "highest"), ("line 1", "flops<3")]  # fmt: skip


def test_an_optimum_at_the_edge_is_flagged_and_a_parabolas_bias_is_known():
    flops, sizes = 1e18, np.geomspace(0.1, 10, 9) * laws.optimum(TRUE, np.array([1e18]), 6.0).parameters  # fmt: skip
    for which, flag in ((sizes, ""), (sizes[4:], "the optimum is at the grid's edge")):
        samples = flops / 6 / which
        points = points_of(parameters=which, samples=samples, flops=np.full(len(which), flops), loss=laws.loss(TRUE, which, samples))  # fmt: skip
        (found,) = parabolas(points, TRUE, 6.0)
        assert found.flag == flag and (found.parameters is None) == bool(flag)
        if not flag:
            assert found.parameters / sizes[4] - 1 == pytest.approx(found.bias) and found.bias != 0


def test_an_image_that_is_seen_again_is_worth_less():
    parameters, samples = grid()
    unique = np.full(len(samples), np.median(samples))
    seen = worth(samples, unique, 8.0)
    assert (seen <= samples * (1 + 1e-12)).all() and (seen[samples <= unique] == samples[samples <= unique]).all()  # fmt: skip
    loss = laws.loss(TRUE, parameters, seen)
    points = points_of(parameters=parameters, samples=samples, flops=6 * parameters * samples, loss=loss)  # fmt: skip
    assert repeats(points) is None
    found = repeats(Points(**(vars(points) | {"unique": unique})))
    assert found["R"] == pytest.approx(8, rel=0.3)
    assert found["squared_error"] < 0.1 * found["squared_error_all_fresh"]


def test_objectives_are_compared_on_an_error_at_equal_flops(tmp_path):
    rows = [(*row, f"{0.1 + k * row[1] ** -0.05}", name) for name, k in (("nepa", 4), ("mae", 3)) for row in rows_of()]  # fmt: skip
    table = write(tmp_path / "points.csv", rows, HEAD + ",error,objective")
    run(
        [
            "scaling",
            "fit",
            table,
            "--objective=objective",
            "--error=error",
            f"--out={tmp_path / 'law'}",
        ]
    )
    found = json.loads((tmp_path / "law" / "fit.json").read_text())
    assert set(found["objectives"]) == {"nepa", "mae"} and set(found["comparison"]["best"]) == {
        "mae"
    }
    middle = found["comparison"]["flops"][2]
    assert found["comparison"]["error"]["nepa"][2] == pytest.approx(
        0.1 + 4 * middle**-0.05, rel=0.02
    )
    assert_picture(tmp_path / "law" / "comparison.png")
    assert (tmp_path / "law" / "nepa" / "fit.json").exists()


def test_workdirs_are_points_with_exact_flops(tmp_path, capsys):
    from nepa_jax.scaling.workdirs import read_runs

    for name in ("a", "b"):
        folder = told.write_workdir(tmp_path / "runs" / name)
        (folder / "eval" / "knn.json").write_text(json.dumps(told.report("knn")))
    (folder / "DONE").unlink()
    told.write_log(folder, [{"step": 10, "train/loss": -0.5}])
    points, meaning = read_runs([str(tmp_path / "runs")], "knn")
    assert points.name.tolist() == ["a", "b"] and points.objective.tolist() == ["nepa"] * 2
    config = from_json((folder / "config.json").read_text())
    facts = load_objective(config.objective.name).describe(config)
    images = 2000 * config.data.batch_size
    assert points.samples[0] == images and points.flops[0] == facts.flops * images
    assert points.parameters[0] == facts.parameters
    assert points.loss[0] == pytest.approx(-0.93, abs=0.01) and np.isnan(points.loss[1])
    assert points.error[0] == pytest.approx(1 - told.report("knn")["number"]["top1"])
    assert (
        "train/loss" in meaning["loss"]
        and "b: stands at step 10 of 2000" in capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"nepa-jax eval linear"):
        read_runs([str(tmp_path / "runs")], "linear")
