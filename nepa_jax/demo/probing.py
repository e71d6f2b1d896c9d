"""What frozen features are worth: kNN and logistic regression on every layer, beside pixels and chance."""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np
from flax import nnx

from nepa_jax.evals import features, knn, logreg
from nepa_jax.loading import Loaded

PROBES = {"knn": knn.predict, "logreg": logreg.predict}
HELD_OUT = ("validation", "test")
BATCH = 500  # images encoded at once

Split = tuple[np.ndarray, np.ndarray]  # images uint8 [n, H, W, 3], labels int32 [n]
Splits = Mapping[str, Split]
Scores = dict[str, list[float]]  # probe -> accuracy in [0, 1] of every layer (one for raw pixels)
Accuracies = dict[str, dict[str, Scores]]  # source of features -> held-out split -> scores


def probe_all(trained: Mapping[str, Loaded], splits: Splits) -> Accuracies:
    """Accuracy of every probe on every layer of every encoder, by its method's name.

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
    return found


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
    """Of each held-out split the accuracy of every probe on each layer.

    Features are standardised on the training part, for kNN too: it is the normalisation without
    parameters that MAE puts before its linear probe.
    """
    train, other = (
        np.concatenate([encoder(splits[split][0]) for split in part], axis=1)
        for part in (("train",), HELD_OUT)
    )
    mean, std = train.mean(axis=1, keepdims=True), train.std(axis=1, keepdims=True) + 1e-6
    train, other = (train - mean) / std, (other - mean) / std
    count = len(splits["validation"][1])
    scores: dict[str, Scores] = {split: {name: [] for name in PROBES} for split in HELD_OUT}
    for name, predict in PROBES.items():
        for train_layer, other_layer in zip(train, other, strict=True):
            predicted = predict(train_layer, splits["train"][1], other_layer)
            for split, part in zip(HELD_OUT, (predicted[:count], predicted[count:]), strict=True):
                scores[split][name].append(float(np.mean(part == splits[split][1])))
    return scores


def best_layers(found: Accuracies) -> dict[str, dict[str, float | int]]:
    """Test accuracies at the layer whose logistic regression is best on the validation split."""
    best = {}
    for source, scores in found.items():
        layer = int(np.argmax(scores["validation"]["logreg"]))
        at_layer = {name: round(values[layer], 4) for name, values in scores["test"].items()}
        best[source] = at_layer | {"layer": layer}
    return best
