"""`nepa-jax eval`: from a workdir and records to numbers beside chance and the untrained encoder."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import small

from nepa_jax.cli import main
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.evals import results, running
from nepa_jax.evals.verb import PROBES, STANDARD

CLASSES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """Classes of one colour each in `train` and `validation`; noise with the labels in `noise`."""
    folder = str(tmp_path_factory.mktemp("data") / "set")
    for split, count, seed, told in (("train", 120, 0, True), ("validation", 60, 1, True),
                                     ("noise", 120, 2, False), ("noise2", 60, 3, False)):  # fmt: skip
        images = small.images(count, seed)
        images[..., 0] = images[..., 0] // 4 + (48 * (np.arange(count) % 4) * told)[:, None, None]
        examples = [(small.png(pixels), i % 4, f"{i}.png") for i, pixels in enumerate(images)]
        prepare_arrays(examples, folder, split, CLASSES)
    return folder


def evaluate(capsys, *arguments: str) -> str:
    main(["eval", *arguments])
    return capsys.readouterr().out


def report_of(capsys, *arguments: str) -> dict:
    out = evaluate(capsys, *arguments, "--json")
    return json.loads(next(line for line in out.splitlines() if line.startswith("{")))


@pytest.mark.parametrize("probe", ["knn", "logreg"])
def test_a_number_stands_beside_chance_and_the_untrained_encoders(workdir, data, capsys, probe):
    found = report_of(capsys, probe, workdir, f"--data={data}")
    assert found["number"]["top1"] > 0.6 and found["chance"] == 0.25
    assert found["untrained"]["layer"] == found["number"]["layer"]
    assert "held-out" in found["chosen"] and 0 <= found["number"]["held_out"] <= 1
    assert found["best_on_test"]["top1"] >= found["number"]["top1"]
    assert [row["layer"] for row in found["by_layer"]] == [0, 1, 2]
    assert found["protocol"]["train_images"] == 120 and found["protocol"]["test_images"] == 60
    assert (found["step"], found["attention"]) == (5, "causal")
    written = json.loads((Path(workdir) / "eval" / f"{probe}.json").read_text())
    assert written == found
    assert (Path(workdir) / "eval" / f"{probe}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("probe", ["knn", "logreg"])
def test_labels_that_cannot_be_learned_give_chance(workdir, data, capsys, tmp_path, probe):
    splits = ["--split=noise", "--test-split=noise2", f"--out={tmp_path}"]
    found = report_of(capsys, probe, workdir, f"--data={data}", *splits, "--no-untrained")
    assert abs(found["number"]["top1"] - found["chance"]) < 3 * (0.25 * 0.75 / 60) ** 0.5
    assert found["untrained"] is None


def test_budgets_are_counted(workdir, data, capsys, tmp_path):
    found = report_of(
        capsys, "fewshot", workdir, f"--data={data}", "--budgets=1,10,100", "--layer=-1",
        f"--out={tmp_path}", "--no-untrained",
    )  # fmt: skip
    assert found["protocol"]["budgets"] == {"0.01": 4, "0.1": 12, "1.0": 120}
    rows = {(row["probe"], row["budget"]): row for row in found["rows"]}
    assert len(rows) == 6 and rows["logreg", 1.0]["images"] == 120
    assert rows["logreg", 1.0]["top1"] >= rows["logreg", 0.01]["top1"]
    assert (found["number"]["probe"], found["number"]["budget"]) == ("logreg", 0.01)


def test_the_same_again_ends_the_same(workdir, data, capsys, tmp_path):
    arguments = ["knn", workdir, f"--data={data}", f"--out={tmp_path}", "--pool=last"]
    evaluate(capsys, *arguments)
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".png"}
    evaluate(capsys, *arguments)
    again = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.suffix != ".png"}
    assert first == again and set(first) == {"knn.json", "results.csv"}
    evaluate(capsys, *arguments[:-1], "--layer=1")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["probe"], row["pool"], row["layer"]) for row in rows][1] == ("knn", "mean", "1")
    assert rows[0]["setting"] == "k=20 T=0.07" and float(rows[0]["chance"]) == 0.25


def test_a_results_file_is_whole_whenever_the_process_ends(tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    results.replace_text(file, "old")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results.replace_text(file, "new")
    assert file.read_text() == "old"


def test_results_stand_beside_the_weights_or_where_they_are_asked_for(tmp_path):
    (tmp_path / "run" / "checkpoints" / "7").mkdir(parents=True)
    (tmp_path / "w.safetensors").touch()
    wanted = {"run": "run/eval", "run/checkpoints/7": "run/eval", "w.safetensors": "w-eval"}
    for path, folder in wanted.items():
        assert results.eval_folder(str(tmp_path / path), None) == tmp_path / folder
    assert results.eval_folder("anything", str(tmp_path / "out")) == tmp_path / "out"


def test_one_page_of_the_standard_set(workdir, data, capsys, tmp_path, monkeypatch):
    """What takes long is tested by itself; here one probe refuses, and the page says so."""
    quick = {name: STANDARD[name] for name in ("knn", "rank", "spatial")}
    monkeypatch.setattr("nepa_jax.evals.verb.STANDARD", quick | {"segment": {}})
    out = evaluate(capsys, "all", workdir, f"--data={data}", f"--out={tmp_path}")
    page = (tmp_path / "card.md").read_text()
    for words in ("| knn | top1 |", "| rank | rankme |", "| spatial | lds |", "25.0 %",
                  "last layer of NEPA predicts", "k 5, 10", "`segment` was left out", "step 5"):  # fmt: skip
        assert words in page
    assert (tmp_path / "card.png").stat().st_size > 10_000
    assert {file.stem for file in tmp_path.glob("*.json")} == {"knn", "rank", "spatial"}
    assert "left out: " in out and "card.md" in out


def test_every_probe_of_the_table_is_there():
    for name in PROBES:
        module = running.import_module(f"nepa_jax.evals.{name}")
        assert callable(module.evaluate), name
    assert STANDARD.keys() <= PROBES.keys()


@pytest.mark.trial
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--layer=9"], "layer 9 does not exist"),
        (["--layer=middle"], "give all, or a whole number"),
        (["--image-size=18"], "multiples of the patch side"),
        (["--test-split=nowhere"], "no split 'nowhere'"),
        (["--out=/dev/null/x"], "give --out=DIR"),
        (["--pool=max"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line(workdir, data, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr("nepa_jax.evals.frozen.encoded", None)
    with pytest.raises(SystemExit) as ended:
        main(["eval", "knn", workdir, f"--data={data}", *arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == 1 and words in error


@pytest.mark.trial
def test_images_without_labels_are_one_line_where_labels_are_counted(workdir, capsys, tmp_path):
    images = [(small.png(pixels), None, f"{i}.png") for i, pixels in enumerate(small.images(8))]
    prepare_arrays(images, str(tmp_path / "bare"), "train", ())
    arguments = [workdir, f"--data={tmp_path / 'bare'}", "--test-split=train", f"--out={tmp_path}"]
    with pytest.raises(SystemExit):
        main(["eval", "knn", *arguments])
    assert "the images have no labels" in capsys.readouterr().err
    assert report_of(capsys, "rank", *arguments)["protocol"]["train_images"] == 8
