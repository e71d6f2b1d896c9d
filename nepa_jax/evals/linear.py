"""Linear probing as MAE does it, at every layer and a grid of learning rates in one program.

The recipe is that of He et al. 2022 (arXiv 2111.06377, appendix A.1, Table 10, and the released
main_linprobe.py): batch norm without parameters, a linear map, LARS at .1 per 256 images, 90 epochs,
no decay, images cut at random. ``--augment=none`` is the cheap form: features are computed once, and
the protocol says so. With ``--layer=-1 --rates=0.1`` nothing is chosen and all images train, as there.
"""

from dataclasses import dataclass

import jax

from nepa_jax.evals.heads.grids import Design, Params
from nepa_jax.evals.heads.probe import probe
from nepa_jax.evals.heads.recipe import Usual
from nepa_jax.evals.results import Outcome
from nepa_jax.evals.subject import Subject
from nepa_jax.optim import lars

USUAL = Usual(
    rates="0.005,0.01,0.02,0.05,0.1,0.2,0.5,1,2,5",
    epochs=90,
    batch_size=16_384,
    warmup=10 / 90,
    protocol={
        "head": "batch norm without affine (eps 1e-6, running average .1), then a linear map",
        "optimizer": "LARS (momentum .9, trust .001, on the matrix alone), no weight decay",
        "number": "the last epoch",
        "best": "the epoch, layer and rate that are best on the test split itself: none to report",
    },
)


@dataclass(frozen=True)
class Vector:
    """No pooling: a layer's vectors [B, D] as they are."""

    def init(self, key: jax.Array) -> Params:
        """There are no parameters."""
        return {}

    def __call__(self, params: Params, inputs: jax.Array) -> jax.Array:
        return inputs


def design_of(dim: int, num_classes: int) -> Design:
    """MAE's head on vectors of so many numbers; the classifier begins as normal of .01."""
    return Design(Vector(), dim, num_classes, normed=True, init_std=0.01, optimizer=lars())


def evaluate(
    subject: Subject,
    epochs: int | None = None,
    batch_size: int | None = None,
    rates: str | None = None,
    augment: str = "crop",
) -> Outcome:
    """Linear classifiers of the test split, trained on the training split.

    Args:
        subject: the encoder and the images.
        epochs: of training; None: 90.
        batch_size: images a step; None: 16,384, or about as many as there are.
        rates: peak learning rates per 256 images, with commas; None: ten about .1.
        augment: ``crop``, or ``none`` for stored features.

    Raises:
        UserError: rates that are none, images without labels.
    """
    recipe = USUAL.recipe(subject.pools[0], epochs, batch_size, rates, augment)
    dim = subject.loaded.config.model.embed_dim
    return probe(subject, recipe, lambda classes, steps: design_of(dim, classes), USUAL.protocol)
