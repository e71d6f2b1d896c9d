"""Label budgets: what a few labelled images are enough for.

Budgets are nested and stratified (:func:`nepa_jax.evals.subsets.budget`): every class has an image at
least, and a larger budget has the images of all smaller ones. Whatever is chosen is chosen within the
budget. The features of all images are computed once; only the labels of a budget are seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import numpy as np

from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import progress
from nepa_jax.base.threads import ordered_map
from nepa_jax.evals import knn, logreg, results, subsets
from nepa_jax.evals.frozen import Frozen
from nepa_jax.evals.subject import Subject

LOGREG = logreg.PROTOCOLS["short"]
NUMBER = {"budget": 0.01, "probe": "logreg"}  # where it is among the budgets; else the smallest one


def evaluate(subject: Subject, budgets: str = "1,5,10,25,100", seed: int = 0) -> results.Outcome:
    """kNN and logistic regression of every budget, at every layer."""
    fractions = budgets_of(budgets)
    subject.require_labels()
    return probe(subject.train(), subject.test(), fractions, seed)


def budgets_of(text: str) -> tuple[float, ...]:
    """Reads percentages with commas between. Raises UserError for others."""
    try:
        percent = [float(part) for part in text.split(",")]
    except ValueError:
        percent = []
    if not percent or not all(0 < value <= 100 for value in percent):
        raise UserError(f"--budgets={text}: give per cent of the training images, such as 1,10,100")
    return tuple(value / 100 for value in percent)


def probe(train: Frozen, test: Frozen, fractions: Sequence[float], seed: int) -> results.Outcome:
    """The rows of every budget, the number that of the 1 % budget's logistic regression."""
    chosen = {fraction: subsets.budget(train.labels, fraction, seed) for fraction in fractions}

    def fit(place: tuple[str, int, float]) -> list[results.Row]:
        pool, i, fraction = place
        images, x = chosen[fraction], train.features[pool][i]
        at = {"layer": train.layers[i], "pool": pool, "budget": fraction, "images": len(images)}
        parts = x[images], train.labels[images], test.features[pool][i], test.labels
        return [at | row for row in _rows(*parts)]

    places = [(p, i, b) for p in train.features for i in range(len(train.layers)) for b in chosen]
    with logreg.side_by_side():
        found = list(progress(ordered_map(fit, places, logreg.CORES), len(places), "budgets"))
    rows = [row for of_place in found for row in of_place]
    taken = NUMBER["budget"] if NUMBER["budget"] in fractions else min(fractions)
    number = {"budget": taken, "probe": "logreg"}
    by_layer = [row for row in rows if number.items() <= row.items()]
    protocol = {
        "budgets": {str(fraction): len(images) for fraction, images in chosen.items()},
        "seed": seed,
        "stratified": True,
        "nested": True,
        "number": number,
        "knn": {
            "k": f"{knn.NUM_NEIGHBORS}, or all images of a smaller budget",
            "T": knn.TEMPERATURE,
        },
        "logreg": asdict(LOGREG),
        "train_images": len(train),
        "test_images": len(test),
    }
    chance = results.chance_of(train.labels, test.labels)
    return results.outcome(protocol, rows, by_layer, chance=chance)


def _rows(
    x: np.ndarray, labels: np.ndarray, other: np.ndarray, other_labels: np.ndarray
) -> Iterator[results.Row]:
    """Both probes of a budget."""
    setting = knn.Setting(min(knn.NUM_NEIGHBORS, len(x)), knn.TEMPERATURE)
    yield {"probe": "knn"} | knn.scores(x, labels, other, other_labels, [setting])[0]
    yield {"probe": "logreg"} | logreg.fitted(x, labels, other, other_labels, LOGREG)[0]
