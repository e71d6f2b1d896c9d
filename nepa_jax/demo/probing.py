"""What frozen features are worth: the package's own probes on every layer, beside pixels and chance."""

from collections.abc import Mapping
from dataclasses import replace

from nepa_jax.evals import knn, logreg
from nepa_jax.evals.pixels import Pixels
from nepa_jax.evals.results import Outcome
from nepa_jax.evals.subject import Subject

# A quarter of the package's grid of penalties, and fewer steps.
LOGREG = replace(logreg.PROTOCOLS["short"], C=(1e-3, 1e-2, 0.1), iterations=60)

Outcomes = dict[str, dict[str, Outcome]]  # source of features -> probe -> what it found


def probe_all(subjects: Mapping[str, Subject]) -> Outcomes:
    """Both probes on every layer of every encoder, by its method's name, and on the pixels.

    ``untrained_METHOD`` is the encoder of that method at step 0, the control of its pretraining:
    the two differ in positions and attention, and so do their random features. ``untrained`` is the
    better of both, by held-out training images.

    Args:
        subjects: an encoder by its method's name, all on the same images.
    """
    found = {"raw_pixels": probe(Pixels(next(iter(subjects.values()))))}
    for method, subject in subjects.items():
        found[f"untrained_{method}"] = probe(subject.untrained())
        found[method] = probe(subject)
    fresh = [found[f"untrained_{method}"] for method in subjects]
    found["untrained"] = max(fresh, key=lambda probes: probes["logreg"].number["held_out"])
    return found


def probe(of: Subject | Pixels) -> dict[str, Outcome]:
    """The two probes that train nothing of their own for long."""
    train, test = of.train(), of.test()
    return {"knn": knn.probe(train, test), "logreg": logreg.probe(train, test, LOGREG)}


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
