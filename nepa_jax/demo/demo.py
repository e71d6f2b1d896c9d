"""The whole path on small real data: records, pretraining, probes, pictures, export.

Nothing here is special to the demo but the data: every part is the one that a large run uses. Run
again in the same folder, it takes up what is there.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

from nepa_jax.base.errors import require_folder
from nepa_jax.base.waiting import told
from nepa_jax.config import load_config
from nepa_jax.data.loader import LoaderConfig, iter_epoch
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.demo import photographs
from nepa_jax.evals import features, knn, logreg
from nepa_jax.export.folder import export
from nepa_jax.loading import Loaded, load
from nepa_jax.train import pretrain
from nepa_jax.visualize import curves, probes, reconstruct, similarity

METHODS = ("nepa", "mae")
IMAGES = {"train": 12_000, "validation": 1_000, "test": 2_000}
LABELLED = 1_500  # training images whose labels the probes see; pretraining sees none
BATCH = 500  # images encoded at once; divides every count above
PROBES = {"knn": knn.predict, "logreg": logreg.predict}

Split = tuple[np.ndarray, np.ndarray]  # images uint8 [n, H, W, 3], labels int32 [n]
Splits = dict[str, Split]
Scores = dict[str, list[float]]  # probe -> accuracy in [0, 1] of every layer (one for raw pixels)
Accuracies = dict[str, Scores]  # source of features -> scores


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
    for method in METHODS:
        with stage(f"pretrain {method.upper()}"):
            trained[method] = train_in_two_parts(method, data, folder)
    with stage("probe the frozen features of every layer"), told("probing"):
        splits = read_splits(data)
        validation, test = probe_all(trained, splits)
    with stage("draw pictures"), told("drawing"):
        draw_pictures(trained, test, splits["test"][0], folder)
    with stage("export for PyTorch"):
        for method in METHODS:
            export(
                str(folder / method), method, str(folder / "export" / method), ema=use_ema(method)
            )
    summary = {
        "seconds": round(time.perf_counter() - began, 1),
        "probe": best_layers(validation, test),
    }
    (folder / "summary.json").write_text(json.dumps(summary | {"layers": test}, indent=2) + "\n")
    Console().print(results_table(summary["probe"]))
    print(f"done in {summary['seconds']:.0f} s: {workdir}/summary.json, pictures/*.png, export/")
    if "VIRTUAL_ENV" not in os.environ and sys.prefix != sys.base_prefix:
        print(f"first: source {os.path.relpath(sys.prefix)}/bin/activate")
    print("next: nepa-jax data prepare YOUR_IMAGES --out=data/yours")


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Says what begins, and afterwards how long it took."""
    print(f"\n== {name}", flush=True)
    began = time.perf_counter()
    yield
    print(f"   {time.perf_counter() - began:.1f} s", flush=True)


def write_records(folder: Path) -> str:
    """Prepares the splits that are not there yet; returns the data set's folder."""
    manifest = folder / "dataset.json"
    present = json.loads(manifest.read_text())["splits"] if manifest.exists() else {}
    for split, count in IMAGES.items():
        if split not in present:
            images, labels = photographs.crops(split, count, seed=0)
            records = photographs.png_records(images, labels)
            prepare_arrays(records, str(folder), split, photographs.CLASSES)
    return str(folder)


def train_in_two_parts(method: str, data: str, folder: Path) -> Loaded:
    """Pretrains; stops half-way, as a preempted run would, and resumes from the checkpoint."""
    config = load_config(f"configs/demo.py:{method}")
    config.data.path = data
    workdir = str(folder / method)
    halfway = int(config.schedule.total_steps) // 2
    pretrain(config, workdir, stop_step=halfway)
    pretrain(config, workdir)
    return load(workdir, ema=use_ema(method))


def use_ema(method: str) -> bool:
    """NEPA's papers evaluate the average; MAE's recipe keeps none."""
    return method == "nepa"


def read_splits(data: str) -> Splits:
    """All splits as the evaluation pass reads them; of the training one, the labelled part."""
    counts = IMAGES | {"train": LABELLED}
    return {split: read_split(data, split, count) for split, count in counts.items()}


def read_split(data: str, split: str, count: int) -> Split:
    """The first images of a split, in whole batches."""
    side = photographs.SIDE
    config = LoaderConfig(data, split, (side, side), batch_size=BATCH, crop="none", flip=False)
    batches = [made.batch for made in islice(iter_epoch(config), count // BATCH)]
    return tuple(np.concatenate([batch[key] for batch in batches]) for key in ("image", "label"))


def probe_all(trained: dict[str, Loaded], splits: Splits) -> tuple[Accuracies, Accuracies]:
    """Accuracy of every probe on every layer of every encoder: validation, test.

    ``untrained_METHOD`` is the encoder of that method at step 0, the control of its pretraining:
    the two differ in positions and attention, and so do their random features. ``untrained`` is the
    better of both on the validation split.
    """
    found = {"raw_pixels": probe(raw_pixels, splits)}
    for method, owner in trained.items():
        found[f"untrained_{method}"] = probe(partial(encode, owner, untrained_model(owner)), splits)
        found[method] = probe(partial(encode, owner, owner.model), splits)
    fresh = [found[f"untrained_{method}"] for method in trained]
    found["untrained"] = max(fresh, key=lambda scores: max(scores["validation"]["logreg"]))
    return tuple(
        {name: scores[split] for name, scores in found.items()} for split in ("validation", "test")
    )


def untrained_model(owner: Loaded) -> nnx.Module:
    """The model of a run as it was before the first step."""
    config = owner.config
    return jax.jit(lambda: owner.objective.init_model(config, nnx.Rngs(config.run.seed)))()


def encode(owner: Loaded, model: nnx.Module, images: np.ndarray) -> np.ndarray:
    """Mean patch tokens of every layer, float32 [layers, n, D]."""
    return features.extract(owner.objective, model, features.in_batches(images, BATCH), "mean")


def raw_pixels(images: np.ndarray) -> np.ndarray:
    """The gray levels themselves as the one layer there is, float32 [1, n, pixels]."""
    return images[None, ..., 0].reshape(1, len(images), -1).astype(np.float32) / 255.0


def probe(encoder: Callable[[np.ndarray], np.ndarray], splits: Splits) -> dict[str, Scores]:
    """Split -> probe -> accuracy of each layer.

    Features are standardised on the training part, for kNN too: it is the normalisation without
    parameters that MAE puts before its linear probe.
    """
    held_out = ("validation", "test")
    train, other = (
        np.concatenate([encoder(splits[split][0]) for split in part], axis=1)
        for part in (("train",), held_out)
    )
    mean, std = train.mean(axis=1, keepdims=True), train.std(axis=1, keepdims=True) + 1e-6
    train, other = (train - mean) / std, (other - mean) / std
    count = len(splits["validation"][1])
    scores: dict[str, Scores] = {split: {name: [] for name in PROBES} for split in held_out}
    for name, predict in PROBES.items():
        for train_layer, other_layer in zip(train, other, strict=True):
            predicted = predict(train_layer, splits["train"][1], other_layer)
            for split, part in zip(held_out, (predicted[:count], predicted[count:]), strict=True):
                scores[split][name].append(float(np.mean(part == splits[split][1])))
    return scores


def best_layers(validation: Accuracies, test: Accuracies) -> dict[str, dict[str, float | int]]:
    """Test accuracies at the layer whose logistic regression is best on the validation split."""
    best = {}
    for name, accuracies in test.items():
        layer = int(np.argmax(validation[name]["logreg"]))
        best[name] = {probe: round(values[layer], 4) for probe, values in accuracies.items()} | {
            "layer": layer
        }
    return best


def draw_pictures(
    trained: dict[str, Loaded], test: Accuracies, images: np.ndarray, folder: Path
) -> None:
    """Reconstructions, next-embedding similarity, training curves, accuracy by layer."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    curves.draw(
        {method: folder / method / "metrics.jsonl" for method in METHODS}, pictures / "curves.png"
    )
    shown = {name: scores for name, scores in test.items() if name != "untrained"}
    probes.draw(shown, pictures / "probes.png", chance=1 / len(photographs.CLASSES))
    reconstruct.draw(
        trained["mae"].model, images[:12], pictures / "reconstruct.png", ratios=(0.6, 0.75, 0.85)
    )
    similarity.draw(trained["nepa"].model, images[:5], pictures / "similarity.png")


def results_table(best: dict[str, dict[str, float | int]]) -> Table:
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
