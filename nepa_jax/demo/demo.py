"""The whole path on small real data: records, pretraining, probes, pictures, export.

Nothing here is special to the demo but the data: every part is the one that a large run uses. Run
again in the same folder, it takes up what is there.
"""

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nepa_jax.base.errors import require_folder
from nepa_jax.base.waiting import told
from nepa_jax.config import load_config
from nepa_jax.data.manifest import read_manifest
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.demo import photographs
from nepa_jax.demo.probing import Outcomes, best_layers, by_layer, probe_all
from nepa_jax.evals import results, running
from nepa_jax.evals.subject import Subject, subject_of
from nepa_jax.export.folder import export
from nepa_jax.loading import Loaded, load
from nepa_jax.report.page import embedded, html_of, page_of
from nepa_jax.report.workdirs import find_workdirs
from nepa_jax.train import pretrain
from nepa_jax.visualize import curves, probes, reconstruct, similarity, style

EMA = {"nepa": True, "mae": False}  # NEPA's papers evaluate the average; MAE's recipe keeps none
IMAGES = {"train": 12_000, "validation": 1_000, "test": 2_000}
LABELLED = 1_500  # training images whose labels the probes see; pretraining sees none


def demo(workdir: str) -> None:
    """Does everything, shows the table, and writes ``summary.json``, ``pictures/``, ``export/``,
    ``report.html``.
    """
    require_folder(workdir, "--workdir")
    began, folder = time.perf_counter(), Path(workdir)
    print(
        f"demo in {workdir}: write records of crops of photographs, pretrain a small NEPA and a small "
        "MAE on them without labels, compare their frozen features with raw pixels and an untrained "
        "encoder, draw pictures, export to PyTorch's format, write a page on both runs"
    )
    with stage("write records"), told("writing"):
        data = write_records(folder / "data")
    trained = {}
    for method in EMA:
        with stage(f"pretrain {method.upper()}"):
            trained[method] = train_in_two_parts(method, data, str(folder / method))
    with stage("probe the frozen features of every layer"), told("probing"):
        subjects = {method: subject(owner, data) for method, owner in trained.items()}
        found = probe_all(subjects)
        write_evaluations(subjects, found, folder)
    with stage("draw pictures"), told("drawing"):
        draw_pictures(trained, by_layer(found), folder)
    with stage("export for PyTorch"):
        for method, ema in EMA.items():
            export(str(folder / method), method, str(folder / "export" / method), ema=ema)
    with stage("write the report page"):
        runs = find_workdirs([str(folder / method) for method in EMA])
        results.replace_text(folder / "report.html", html_of(page_of(runs, embedded)))
    best, seconds = best_layers(found), round(time.perf_counter() - began, 1)
    summary = {"seconds": seconds, "probe": best, "layers": by_layer(found)}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    Console().print(results_table(best))
    print(f"done in {seconds:.0f} s: {workdir}/summary.json, pictures/*.png, export/")
    print(f"look: {workdir}/report.html in any browser: both runs' curves, layers and pictures")
    if "VIRTUAL_ENV" not in os.environ and sys.prefix != sys.base_prefix:
        print(f"first: source {os.path.relpath(sys.prefix)}/bin/activate")
    print(f"next: nepa-jax eval all {workdir}/nepa --ema --data={workdir}/data")
    print("      nepa-jax data prepare YOUR_IMAGES --out=data/yours")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Says what begins, and afterwards how long it took."""
    print(f"\n== {name}", flush=True)
    began = time.perf_counter()
    yield
    print(f"   {time.perf_counter() - began:.1f} s", flush=True)


def write_records(folder: Path) -> str:
    """Prepares the splits that are not there yet; returns the data set's folder."""
    begun = (folder / "dataset.json").exists()
    present = read_manifest(str(folder))["splits"] if begun else {}
    for split, count in IMAGES.items():
        if split not in present:
            images, labels = photographs.crops(split, count, seed=0)
            records = photographs.png_records(images, labels)
            prepare_arrays(records, str(folder), split, photographs.CLASSES)
    return str(folder)


def train_in_two_parts(method: str, data: str, workdir: str) -> Loaded:
    """Pretrains; stops half-way, as a preempted run would, and resumes from the checkpoint."""
    config = load_config(f"configs/demo.py:{method}", {"data.path": data})
    pretrain(config, workdir, stop_step=int(config.schedule.total_steps) // 2)
    pretrain(config, workdir)
    return load(workdir, ema=EMA[method])


def subject(owner: Loaded, data: str) -> Subject:
    """An encoder at all its layers, on the labelled training images and all test images."""
    return subject_of(owner, data, splits=("train", "test"), train_images=LABELLED)


def write_evaluations(subjects: Mapping[str, Subject], found: Outcomes, folder: Path) -> None:
    """``eval/`` of each run, as ``nepa-jax eval`` writes it: the report page shows what is there."""
    for method, owner in subjects.items():
        asked = Namespace(
            path=folder / method, ema=EMA[method], data=owner.data.path,
            split=owner.data.split, test_split=owner.test_split,
        )  # fmt: skip
        facts = running.facts_of(asked, owner)
        for name, outcome in found[method].items():
            others = found[f"untrained_{method}"][name], found["raw_pixels"][name]
            results.write(folder / method / "eval", results.report(name, facts, outcome, *others))


def draw_pictures(
    trained: Mapping[str, Loaded], accuracies: probes.Accuracies, folder: Path
) -> None:
    """Training curves, accuracy by layer, reconstructions, next-embedding similarity.

    The last two lie with their runs too, under the names that ``nepa-jax visualize`` gives them, for
    the report page.
    """
    pictures = folder / "pictures"
    logs = {method: folder / method / "metrics.jsonl" for method in trained}
    curves.draw(logs, pictures / "curves.png")
    shown = {name: found for name, found in accuracies.items() if name != "untrained"}
    probes.draw(shown, pictures / "probes.png", chance=1 / len(photographs.CLASSES))
    images, _ = photographs.crops("test", len(photographs.CLASSES), seed=0)  # one of each
    rebuilt = reconstruct.draw(trained["mae"].model, images[:12], ratios=(0.6, 0.75, 0.85))
    similar = similarity.draw(trained["nepa"].model, images[:5])
    for method, name, figure in (
        ("mae", "reconstructions", rebuilt),
        ("nepa", "similarity", similar),
    ):
        for place in (pictures, folder / method / "pictures"):
            style.save(figure, place / f"{name}.png")


def results_table(best: Mapping[str, Mapping[str, float | int]]) -> Table:
    """Accuracies in per cent, a row for each source of features."""
    table = Table("frozen features", "kNN, %", "logistic regression, %", "layer")
    for name, row in best.items():
        if name == "untrained":
            continue  # the better of the two that are shown
        layer = "" if name == "raw_pixels" else str(row["layer"])
        table.add_row(
            name.replace("_", " "), f"{100 * row['knn']:.1f}", f"{100 * row['logreg']:.1f}", layer
        )
    table.caption = (
        f"{len(photographs.CLASSES)} classes; chance is {100 / len(photographs.CLASSES):.1f} %"
    )
    return table
