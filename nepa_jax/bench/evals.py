"""Measures what evaluation adds to the bare encoder, and nearest neighbours among stored features."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from nepa_jax.config import evaluation_data, resolve
from nepa_jax.data.loader import LoaderConfig
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.evals import knn
from nepa_jax.evals.features import encoded
from nepa_jax.evals.subject import BATCH
from nepa_jax.loading import Loaded
from nepa_jax.mesh import put_batch, side_by_side
from nepa_jax.objectives.base import encode, load_objective

STEPS, ROUNDS = 3, 1
QUERIES, BANK, CLASSES = 10_000, 50_000, 1_000


def bench_features(config: ConfigDict) -> dict[str, Any]:
    """Images per second of the bare encoder, and from records to pooled vectors of every layer; and
    the seconds that kNN takes.

    The two rates take turns. Images are noise of 1.14 times the encoder's side, as JPEG, cut as in
    evaluation.

    Args:
        config: of a run; its weights are fresh.
    """
    config = resolve(config, STEPS * BATCH, jax.default_backend())
    objective = load_objective(config.objective.name)
    model = jax.jit(lambda: objective.init_model(config, nnx.Rngs(0)))()
    loaded = Loaded(model, objective, config)
    with tempfile.TemporaryDirectory(prefix="nepa-jax-features-") as folder:
        data = replace(evaluation_data(config), path=_written(folder, config), batch_size=BATCH)
        rounds = [(_bare(loaded, data), _pooled(loaded, data)) for _ in range(ROUNDS + 1)]
    bare, pooled = np.max(rounds[1:], axis=0).tolist()
    dim = config.model.embed_dim
    return {
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "bare_images_per_s": bare,
        "features_images_per_s": pooled,
        "features_over_bare": pooled / bare,
        "knn": f"{QUERIES:,} × {BANK:,} × {dim}, {CLASSES:,} classes, 18 settings",
        "knn_s": _knn_s(dim),
    }


def _written(folder: str, config: ConfigDict) -> str:
    """A prepared set of as many images as are measured."""
    height, width = config.model.image_size
    rng = np.random.default_rng(0)

    def examples() -> Iterator[tuple[bytes, int, str]]:
        for i in range(STEPS * BATCH):
            coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
            image = Image.fromarray(coarse).resize((round(1.14 * width), round(1.14 * height)))
            file = Path(folder, "image.jpg")
            image.save(file, quality=90)
            yield file.read_bytes(), i % 2, f"{i}.jpg"

    prepare_arrays(examples(), f"{folder}/set", "train", ("a", "b"))
    return f"{folder}/set"


def _bare(loaded: Loaded, data: LoaderConfig) -> float:
    """Images per second of one batch again and again, its last layer alone."""
    mesh = side_by_side()
    size = -(-BATCH // mesh.size) * mesh.size
    pixels = np.zeros((size, *data.image_size, data.channels), np.uint8)
    images = put_batch({"image": pixels}, mesh)["image"]
    began = time.perf_counter()
    for _ in range(STEPS):
        features = encode(loaded.objective, loaded.model, images, -1)
        jax.block_until_ready(features.patches)
    return STEPS * size / (time.perf_counter() - began)


def _pooled(loaded: Loaded, data: LoaderConfig) -> float:
    """Images per second from records to vectors of every layer in this host's memory."""
    began = time.perf_counter()
    for _ in encoded(loaded, data, ("mean", "cls"), range(loaded.config.model.depth + 1)):
        pass
    return STEPS * BATCH / (time.perf_counter() - began)


def _knn_s(dim: int) -> float:
    """Seconds of all settings, compiling among them."""
    rng = np.random.default_rng(0)
    bank, queries = (rng.standard_normal((n, dim), np.float32) for n in (BANK, QUERIES))
    labels = rng.integers(0, CLASSES, BANK, np.int32)
    settings = [knn.Setting(k, T) for k in knn.PROTOCOL["k"] for T in knn.PROTOCOL["T"]]
    began = time.perf_counter()
    knn.scores(bank, labels, queries, labels[:QUERIES], settings)
    return time.perf_counter() - began
