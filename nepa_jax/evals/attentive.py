"""Attentive probes: heads that choose among the patch tokens of a frozen encoder.

Two of the field. ``vjepa`` is the block of V-JEPA (arXiv 2404.08471, appendix; released
attentive_pooler.py): one learned query attends over normed tokens in several heads, then an MLP.
``efficient`` (arXiv 2506.10178; released ep.py) keeps what it needs of that: 32 learned queries whose
keys are the raw tokens, one value projection in 32 parts.

Queries are learned and the same for all images, so keys and values are never computed for a token: a
query goes through the key projection backwards, once, and the value projection is applied to the
weighted sum of tokens. That is the same number for a fiftieth of the work, and what is held of an
image is its tokens, shared by all heads of a layer.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from nepa_jax.base.errors import UserError
from nepa_jax.base.keys import named_key
from nepa_jax.evals.heads.grids import Design, Params
from nepa_jax.evals.heads.probe import probe
from nepa_jax.evals.heads.recipe import Usual
from nepa_jax.evals.results import Outcome
from nepa_jax.evals.subject import Subject
from nepa_jax.models.layers import gelu
from nepa_jax.models.norms import Affine, normalize, standardize, statistics
from nepa_jax.optim import lars, matrices

QUERIES = 32
EFFICIENT_STD = 0.02
VJEPA_EPS = 1e-5
VJEPA_STD = 0.02
MLP_RATIO = 4


# Rates of V-JEPA 2's grid (arXiv 2506.09985), as they are per 256 images of its 1,024.
USUAL = {
    "efficient": Usual(
        "0.02,0.05,0.1,0.2,0.5", 90, 4096, 10 / 90,
        {
            "head": "32 learned queries, keys are the raw patch tokens, one value projection in 32 "
            "parts, batch norm without affine, a linear map (arXiv 2506.10178)",
            "optimizer": "LARS (momentum .9, trust .001, on matrices alone), no weight decay",
        },
    ),
    "vjepa": Usual(
        "0.000125,0.00025,0.000375,0.0005", 20, 1024, 0.0,
        {
            "head": "V-JEPA's cross-attention block with one query, a linear map (arXiv 2404.08471)",
            "optimizer": "AdamW (.9, .999), gradients clipped to norm 1, weight decay from .001 to "
            "1e-6 by half a cosine, on matrices alone",
        },
    ),
}  # fmt: skip


def evaluate(
    subject: Subject,
    kind: str = "efficient",
    epochs: int | None = None,
    batch_size: int | None = None,
    rates: str | None = None,
    augment: str = "crop",
) -> Outcome:
    """Attentive probes of the test split, trained on the patch tokens of the training split.

    Args:
        subject: the encoder and the images.
        kind: ``efficient`` or ``vjepa``.
        epochs: of training; None: those of its paper.
        batch_size: images a step; None: its paper's, or about as many as there are.
        rates: peak learning rates per 256 images, with commas; None: four or five.
        augment: ``crop``: images go through the encoder in every epoch; ``none``: tokens are stored,
            if they are few enough.

    Raises:
        UserError: rates that are none, images without labels, a width that is not to be had in parts.
    """
    usual, model = USUAL[kind], subject.loaded.config.model
    recipe = usual.recipe("none", epochs, batch_size, rates, augment)
    design = partial(design_of, kind, model.embed_dim, model.num_heads)
    design(num_classes=2, steps=1)  # a width that cannot be parted is told before all work
    return probe(subject, recipe, design, {"kind": kind, **usual.protocol})


def design_of(kind: str, dim: int, num_heads: int, num_classes: int, steps: int) -> Design:
    """A head of one kind on tokens of so many numbers.

    Raises:
        UserError: the efficient probe cannot part them.
    """
    if kind == "efficient":
        pooling = Efficient(dim)
        return Design(pooling, dim, num_classes, normed=True, init_std=0.01, optimizer=lars())
    return Design(
        VJEPA(dim, num_heads), dim, num_classes, normed=False, init_std=VJEPA_STD,
        optimizer=vjepa_optimizer(steps),
    )  # fmt: skip


def vjepa_optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW of V-JEPA's released image evaluation; the learning rate multiplies what comes out."""
    decay = optax.cosine_decay_schedule(1e-3, steps, alpha=1e-3)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(0.9, 0.999),
        optax.add_decayed_weights(decay, mask=matrices),
    )


def attend(tokens: jax.Array, directions: jax.Array) -> jax.Array:
    """Weighted sums of tokens [B, T, D], a softmax for every direction [Q, D] -> [B, Q, D]."""
    scores = jnp.einsum("btd,qd->bqt", tokens, directions)
    return jnp.einsum("bqt,btd->bqd", jax.nn.softmax(scores, axis=-1), tokens)


@dataclass(frozen=True)
class Efficient:
    """The efficient probe: tokens [B, T, D] -> [B, D].

    Parameters: ``query`` [32, D], and ``value`` [D, 32, D/32], without a bias.
    """

    dim: int

    def __post_init__(self) -> None:
        """Raises UserError if the width is not to be had in as many parts as there are queries."""
        if self.dim % QUERIES:
            raise UserError(
                f"--kind=efficient: {QUERIES} queries share the width of the encoder, and "
                f"{self.dim} is no multiple of it; try --kind=vjepa"
            )

    def init(self, key: jax.Array) -> Params:
        """Queries normal of .02, values uniform in ±1/√D (PyTorch's linear)."""
        part, bound = self.dim // QUERIES, self.dim**-0.5
        shape = self.dim, QUERIES, part
        return {
            "query": EFFICIENT_STD
            * jax.random.normal(named_key(key, "query"), (QUERIES, self.dim)),
            "value": jax.random.uniform(
                named_key(key, "value"), shape, minval=-bound, maxval=bound
            ),
        }

    def __call__(self, params: Params, tokens: jax.Array) -> jax.Array:
        summed = attend(tokens, params["query"] * self.dim**-0.5)
        pooled = jnp.einsum("bqd,dqe->bqe", summed, params["value"])
        return pooled.reshape(len(tokens), self.dim)


@dataclass(frozen=True)
class VJEPA:
    """V-JEPA's cross-attention block: tokens [B, T, D] -> [B, D].

    The query is not normed, the tokens are; the residual is the raw query; the projection after the
    attention exists in the released file and is never used. A bias of the keys moves all scores of a
    query alike, which the softmax does not see: there is none.
    """

    dim: int
    num_heads: int

    def init(self, key: jax.Array) -> Params:
        """Normal of .02, cut off at two of it; the MLP's last matrix over √2; biases 0."""
        dim, heads, hidden = self.dim, self.num_heads, MLP_RATIO * self.dim
        split = dim, heads, dim // heads

        def normal(name: str, *shape: int) -> jax.Array:
            return VJEPA_STD * jax.random.truncated_normal(named_key(key, name), -2.0, 2.0, shape)

        return {
            "query": normal("query", 1, dim),
            "norm1": {"scale": jnp.ones(dim), "bias": jnp.zeros(dim)},
            "q": {"kernel": normal("q", *split), "bias": jnp.zeros(dim)},
            "k": {"kernel": normal("k", *split)},
            "v": {"kernel": normal("v", *split), "bias": jnp.zeros(dim)},
            "norm2": {"scale": jnp.ones(dim), "bias": jnp.zeros(dim)},
            "fc1": {"kernel": normal("fc1", dim, hidden), "bias": jnp.zeros(hidden)},
            "fc2": {"kernel": normal("fc2", hidden, dim) * 0.5**0.5, "bias": jnp.zeros(dim)},
        }

    def __call__(self, params: Params, tokens: jax.Array) -> jax.Array:
        pooled = params["query"] + self.attention(params, tokens)
        normed = normalize(pooled, Affine(**params["norm2"]), VJEPA_EPS)
        fc1, fc2 = params["fc1"], params["fc2"]
        hidden = gelu(normed @ fc1["kernel"] + fc1["bias"])
        return pooled + hidden @ fc2["kernel"] + fc2["bias"]

    def attention(self, params: Params, tokens: jax.Array) -> jax.Array:
        """What the query gets of the tokens, before the residual: [B, D]."""
        norm, head_dim = params["norm1"], self.dim // self.num_heads
        query = jnp.einsum("d,dhe->he", params["query"][0], params["q"]["kernel"])
        query += params["q"]["bias"].reshape(self.num_heads, head_dim)
        directions = jnp.einsum("he,dhe->hd", query, params["k"]["kernel"]) * head_dim**-0.5
        # The norm's scale goes with the query, so that heads share the tokens as they are.
        summed = attend(
            standardize(tokens, statistics(tokens, VJEPA_EPS)), directions * norm["scale"]
        )
        summed = summed * norm["scale"] + norm["bias"]
        values = jnp.einsum("bhd,dhe->bhe", summed, params["v"]["kernel"])
        return values.reshape(len(tokens), self.dim) + params["v"]["bias"]
