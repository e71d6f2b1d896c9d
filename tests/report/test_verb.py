"""``nepa-jax report``: a file that stands alone, or one clear line."""

import json
import random
import re
import time

import pytest
import told

from nepa_jax.cli import main


@pytest.fixture
def run(tmp_path):
    return told.write_workdir(tmp_path / "runs" / "a", steps=200)


def page_of(*paths, out):
    main(["report", *map(str, paths), f"--out={out}"])
    return out.read_text()


def test_the_file_holds_everything_and_asks_for_nothing(run, tmp_path, capsys):
    told.write_picture(run / "one.png")
    text = page_of(run, out=tmp_path / "deep" / "page.html")
    assert re.findall(r"(?:src|href)=\"(?!data:)[^\"]*\"", text) == []
    assert not re.findall(r"https?://(?!www\.w3\.org)", text) and "@import" not in text
    assert "data:image/png;base64," in text
    printed = capsys.readouterr().out
    assert "done: " in printed and "page.html (0." in printed and "next: nepa-jax report" in printed


def test_the_same_runs_give_the_same_page(run, tmp_path, monkeypatch):
    from nepa_jax.report import page

    monkeypatch.setattr(page.time, "time", lambda: 1.8e9)
    first = page_of(run, out=tmp_path / "1.html")
    assert page_of(run, out=tmp_path / "2.html") == first


def test_the_browser_is_told_to_run_no_other_script(run, tmp_path):
    import base64
    import hashlib

    text = page_of(run, out=tmp_path / "page.html")
    script = text.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text


@pytest.mark.trial
def test_bad_input_is_one_line(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.lock").write_text("")
    told.write_log(tmp_path / "blank", [])
    cases = {
        ("no/such/place",): "no/such/place: there is no such folder",
        (f"{tmp_path}/empty",): "empty: no run is here",
        (f"{run}/metrics.jsonl",): "is a file; give a run's workdir",
        (f"{tmp_path}/begun",): "begun: no step is logged yet",
        (f"{tmp_path}/blank",): "blank: no step is logged yet",
        ("gs://bucket/run",): "is a URL",
        (str(run), f"--out={tmp_path}/page.txt"): "page.txt: give a file that ends in .html",
        (str(run), f"--out={tmp_path}/empty.html/"): "is a folder",
        (str(run), "--out=/proc/no/page.html"): "--out=/proc/no/page.html: cannot be written",
        (str(run), "--serve", "--out=page.html"): "--serve writes no file",
        (str(run), "--port=80"): "--port=80: is for --serve",
        (str(run), "--host=0.0.0.0"): "--host=0.0.0.0: is for --serve",
        (str(run), "--serve", "--port=70000"): "70000",
        (): "paths|W",
    }
    (tmp_path / "empty.html").mkdir()
    for arguments, words in cases.items():
        with pytest.raises(SystemExit) as end:
            main(["report", *arguments])
        told_of = capsys.readouterr().err
        assert end.value.code == 2 and told_of.count("\n") == 1, arguments
        assert re.search(words, told_of), (arguments, told_of)


def test_a_folder_with_one_run_that_logs_and_one_that_does_not_yet(run, tmp_path):
    (tmp_path / "runs" / "b").mkdir()
    (tmp_path / "runs" / "b" / "run.lock").write_text("")
    text = page_of(tmp_path / "runs", out=tmp_path / "page.html")
    assert '"name": "b"' in text


@pytest.mark.trial
def test_pictures_are_in_order_and_none_comes_from_elsewhere(run, tmp_path, monkeypatch):
    from nepa_jax.report.pictures import read_pictures

    for name in ("b10", "b9", "a"):
        told.write_picture(run / "pictures" / f"{name}.png")
    told.write_picture(run / "eval" / "0.png")  # of 0.json
    told.write_picture(run / "eval" / "card.png")
    told.write_picture(run / "eval" / "confusion.png")
    told.write_picture(run / "checkpoints" / "5" / "x.png")
    (run / "pictures" / "no.png").write_text("no picture")
    outside = told.write_picture(tmp_path / "secret.png")
    (run / "pictures" / "link.png").symlink_to(outside)
    notes = []
    names = [picture.name for picture in read_pictures(run, 1 << 20, notes)]
    assert names.pop(0) == "eval/confusion.png" and notes == []
    assert names == ["pictures/a.png", "pictures/b9.png", "pictures/b10.png"]
    size = (run / "pictures" / "a.png").stat().st_size
    (last,) = read_pictures(run, size + size // 2, notes)
    assert last.name == "pictures/b10.png" and "3 of 4 pictures are left out" in notes[0]
    assert read_pictures(run, 10, notes) == []


@pytest.mark.chaos
def test_half_a_million_lines_are_read_and_written_in_seconds(tmp_path):
    """Under five on an idle core; a busy one takes up to twice as long for the same."""
    draw = random.Random(0)
    lines = [json.dumps(told.metrics_of(step, 10_000, draw)) for step in range(1, 10_001)]
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for part in range(50):
            file.writelines(
                line.replace(f'"step": {at}', f'"step": {part * 10_000 + at}', 1) + "\n"
                for at, line in enumerate(lines, 1)
            )
    began = time.process_time()
    text = page_of(tmp_path, out=tmp_path / "page.html")
    assert time.process_time() - began < 10
    assert '"count": 500000' in text and len(text) < 3e6
