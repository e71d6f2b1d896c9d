"""What frozen features are worth: the package's own probes on every layer, beside pixels and chance."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from nepa_jax.data.loader import LoaderConfig
from nepa_jax.evals import knn, logreg
from nepa_jax.evals.frozen import Frozen
from nepa_jax.evals.results import Outcome
from nepa_jax.evals.subject import Subject
from nepa_jax.loading import Loaded

# A quarter of the package's grid of penalties, and fewer steps.
LOGREG = replace(logreg.PROTOCOLS["short"], C=(1e-3, 1e-2, 0.1), iterations=60)

Split = tuple[np.ndarray, np.ndarray]  # images uint8 [n, H, W, 3], labels int32 [n]
Outcomes = dict[str, dict[str, Outcome]]  # source of features -> probe -> what it found


def probe_all(
    trained: Mapping[str, Loaded], data: LoaderConfig, labelled: int, pixels: Mapping[str, Split]
) -> Outcomes:
    """Both probes on every layer of every encoder, by its method's name, and on the pixels.

    ``untrained_METHOD`` is the encoder of that method at step 0, the control of its pretraining:
    the two differ in positions and attention, and so do their random features. ``untrained`` is the
    better of both, by held-out training images.

    Args:
        trained: an encoder by its method's name.
        data: of the training split, of which the first ``labelled`` images have their labels seen.
        labelled: so many.
        pixels: of the splits ``train``, those images alone, and ``test``.
    """
    found = {"raw_pixels": probe(*(raw_pixels(pixels[split]) for split in ("train", "test")))}
    for method, owner in trained.items():
        layers = tuple(range(owner.config.model.depth + 1))
        subject = Subject(owner, data, "test", layers, ("mean",), labelled)
        for name, each in ((f"untrained_{method}", subject.untrained()), (method, subject)):
            found[name] = probe(each.train(), each.test())
    fresh = [found[f"untrained_{method}"] for method in trained]
    found["untrained"] = max(fresh, key=lambda probes: probes["logreg"].number["held_out"])
    return found


def probe(train: Frozen, test: Frozen) -> dict[str, Outcome]:
    """The two probes that train nothing of their own for long."""
    return {"knn": knn.probe(train, test), "logreg": logreg.probe(train, test, LOGREG)}


def raw_pixels(split: Split) -> Frozen:
    """The gray levels themselves as the one layer there is."""
    images, labels = split
    vectors = images[..., 0].reshape(len(images), -1).astype(np.float32) / 255.0
    index = np.arange(len(images), dtype=np.int32)
    return Frozen({"pixels": [vectors]}, (0,), labels, index, (), images.shape[1:3], "pixels")


def by_layer(found: Outcomes) -> dict[str, dict[str, list[float]]]:
    """Source of features -> probe -> test accuracy in [0, 1] of every layer, or of the one there is."""
    return {
        source: {
            name: [row["top1"] for row in outcome.by_layer] for name, outcome in probes.items()
        }
        for source, probes in found.items()
    }


def best_layers(found: Outcomes) -> dict[str, dict[str, float | int]]:
    """Test accuracies at the layer whose logistic regression is best on held-out training images."""
    best = {}
    for source, probes in found.items():
        place = probes["logreg"].by_layer.index(probes["logreg"].number)
        at_layer = {n: round(each.by_layer[place]["top1"], 4) for n, each in probes.items()}
        best[source] = at_layer | {"layer": probes["logreg"].number["layer"]}
    return best
