"""Health of features without labels: how many dimensions they use, and how their spectrum decays.

* RankMe (Garrido et al. 2023, arXiv 2210.02885, equation 3): exp of the entropy of the singular
  values' shares p = σ / Σσ + 1e-7, of the features as they are, not centred; on 25,600 training images.
* Effective rank (Roy and Vetterli 2007, section 2): exp of the entropy of σ / Σσ; here of the features
  less their mean, which in a transformer's middle layers is most of what RankMe sees.
* alpha-ReQ (Agrawal et al. 2022): α of λ ~ rank^-α for the eigenvalues λ of the covariance, which is
  centred. As the released code (fastssl) fits it: least squares of log λ over log rank, ranks 4 to 100
  or the last that is above rounding, weights 1 / rank.
"""

from dataclasses import replace

import numpy as np

from nepa_jax.evals import results
from nepa_jax.evals.frozen import Frozen
from nepa_jax.evals.subject import Subject

IMAGES = 25_600
EPSILON = 1e-7
RANKS = (4, 100)
PROTOCOL = {
    "rankme": "exp(-Σ p log p), p = σ / Σσ + 1e-7, σ singular values of the features, not centred",
    "effective_rank": "exp(-Σ p log p), p = σ / Σσ, σ singular values of the features less their mean",
    "alpha": "λ ~ rank^-α, λ eigenvalues of the covariance, least squares of logs, weights 1 / rank",
    "alpha_ranks": RANKS,
}


def evaluate(subject: Subject) -> results.Outcome:
    """All three at every layer, of the first images of the training split."""
    images = min(subject.train_images or IMAGES, IMAGES)
    return probe(replace(subject, train_images=images).train())


def probe(train: Frozen) -> results.Outcome:
    """The rows of every layer."""
    rows = [
        {"layer": layer, "pool": pool, **health(np.asarray(x, np.float64))}
        for pool, vectors in train.features.items()
        for layer, x in zip(train.layers, vectors, strict=True)
    ]
    return results.outcome(PROTOCOL | {"train_images": len(train)}, rows, rows, metric="rankme")


def health(x: np.ndarray) -> results.Row:
    """``rankme``, ``effective_rank`` and ``alpha`` of features float64 [n, D].

    ``alpha`` is None where fewer than two of the ranks it is fitted to are there.
    """
    centred = singular_values(x - x.mean(axis=0))
    return {
        "rankme": entropic_rank(singular_values(x), EPSILON),
        "effective_rank": entropic_rank(centred, 0.0),
        "alpha": decay(np.square(centred)),
    }


def singular_values(x: np.ndarray) -> np.ndarray:
    """Of [n, D], the largest first; by way of a triangle, which is the smaller matrix where n > D."""
    return np.linalg.svd(np.linalg.qr(x, mode="r"), compute_uv=False)


def entropic_rank(sigma: np.ndarray, epsilon: float) -> float:
    """exp of the entropy of the shares; 0 of features that are all zero."""
    total = sigma.sum()
    if total == 0:
        return 0.0
    p = sigma / total + epsilon
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))


def decay(eigenvalues: np.ndarray) -> float | None:
    """α of eigenvalues, the largest first."""
    first, last = RANKS
    above = int(np.sum(eigenvalues > 1e-12 * eigenvalues[:1]))
    ranks = np.arange(first, min(last, above) + 1)
    if len(ranks) < 2:
        return None
    weights = np.sqrt(1.0 / ranks)  # polyfit squares them
    slope, _ = np.polyfit(np.log(ranks), np.log(eigenvalues[ranks - 1]), 1, w=weights)
    return float(-slope)
