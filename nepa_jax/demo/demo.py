"""The whole path on small real data: records, pretraining, probes, pictures, export.

Nothing here is special to the demo but the data: every part is the one that a large run uses. Run
again in the same folder, it takes up what is there.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from nepa_jax.base.errors import require_folder
from nepa_jax.base.waiting import told
from nepa_jax.config import load_config
from nepa_jax.data.loader import LoaderConfig, iter_epoch
from nepa_jax.data.manifest import read_manifest
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.demo import photographs
from nepa_jax.demo.probing import Split, best_layers, by_layer, probe_all
from nepa_jax.export.folder import export
from nepa_jax.loading import Loaded, load
from nepa_jax.train import pretrain
from nepa_jax.visualize import curves, probes, reconstruct, similarity, style

EMA = {"nepa": True, "mae": False}  # NEPA's papers evaluate the average; MAE's recipe keeps none
IMAGES = {"train": 12_000, "validation": 1_000, "test": 2_000}
LABELLED = 1_500  # training images whose labels the probes see; pretraining sees none
BATCH = 500  # images encoded at once


def demo(workdir: str) -> None:
    """Does everything, shows the table, and writes ``summary.json``, ``pictures/``, ``export/``."""
    require_folder(workdir, "--workdir")
    began, folder = time.perf_counter(), Path(workdir)
    print(
        f"demo in {workdir}: write records of crops of photographs, pretrain a small NEPA and a small "
        "MAE on them without labels, compare their frozen features with raw pixels and an untrained "
        "encoder, draw pictures, export to PyTorch's format"
    )
    with stage("write records"), told("writing"):
        data = write_records(folder / "data")
    trained = {}
    for method in EMA:
        with stage(f"pretrain {method.upper()}"):
            trained[method] = train_in_two_parts(method, data, str(folder / method))
    with stage("probe the frozen features of every layer"), told("probing"):
        pixels = {split: read_split(data, split) for split in ("train", "test")}
        found = probe_all(trained, data_of(data, "train"), LABELLED, pixels)
    with stage("draw pictures"), told("drawing"):
        draw_pictures(trained, by_layer(found), pixels["test"][0], folder)
    with stage("export for PyTorch"):
        for method, ema in EMA.items():
            export(str(folder / method), method, str(folder / "export" / method), ema=ema)
    best, seconds = best_layers(found), round(time.perf_counter() - began, 1)
    summary = {"seconds": seconds, "probe": best, "layers": by_layer(found)}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    Console().print(results_table(best))
    print(f"done in {seconds:.0f} s: {workdir}/summary.json, pictures/*.png, export/")
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


def data_of(data: str, split: str) -> LoaderConfig:
    """A split as it is, without cuts."""
    side = photographs.SIDE
    return LoaderConfig(data, split, (side, side), batch_size=BATCH, crop="none", flip=False)


def read_split(data: str, split: str) -> Split:
    """A split as the evaluation pass reads it; of the training one, the labelled part."""
    config, first = data_of(data, split), LABELLED if split == "train" else None
    made = list(iter_epoch(config, first=first))
    there = np.concatenate([each.account.valid for each in made])
    return tuple(
        np.concatenate([each.batch[key] for each in made])[there] for key in ("image", "label")
    )


def draw_pictures(
    trained: Mapping[str, Loaded], accuracies: probes.Accuracies, images: np.ndarray, folder: Path
) -> None:
    """Reconstructions, next-embedding similarity, training curves, accuracy by layer."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    logs = {method: folder / method / "metrics.jsonl" for method in trained}
    curves.draw(logs, pictures / "curves.png")
    shown = {name: found for name, found in accuracies.items() if name != "untrained"}
    probes.draw(shown, pictures / "probes.png", chance=1 / len(photographs.CLASSES))
    rebuilt = reconstruct.draw(trained["mae"].model, images[:12], ratios=(0.6, 0.75, 0.85))
    style.save(rebuilt, pictures / "reconstruct.png")
    similar = similarity.draw(trained["nepa"].model, images[:5])
    style.save(similar, pictures / "similarity.png")


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
