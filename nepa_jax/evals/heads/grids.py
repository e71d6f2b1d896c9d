"""Heads on frozen features: one for every layer and rate, trained side by side in one program.

A head pools what a layer gives of an image, norms it (or not) and classifies by a linear map. Heads
of a layer differ in nothing but their learning rate; layers follow each other inside of the program,
so that the scores of all classes are held for one layer at a time.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from nepa_jax.base.keys import named_key

NORM_EPS = 1e-6
NORM_MOMENTUM = 0.1  # of the running statistics: the share of the new
TOP = 5
# Of what is not centred: accelerators would round the means away.
matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

Params = Any


class Pooling(Protocol):
    """What makes one vector of what a layer gives of an image. Hashable: it is part of the program."""

    def init(self, key: jax.Array) -> Params:
        """Its parameters."""

    def __call__(self, params: Params, inputs: jax.Array) -> jax.Array:
        """float32 [B, …] -> [B, F]."""


@dataclass(frozen=True)
class Design:
    """What all heads of a grid have in common."""

    pooling: Pooling
    width: int  # F, of pooled vectors
    num_classes: int
    normed: bool  # batch norm without parameters between pooling and classifier
    init_std: float  # of the classifier's weights, cut off at two of it
    optimizer: optax.GradientTransformation  # the learning rate multiplies what comes out


class Schedule(NamedTuple):
    """Linear warm-up from 0, then half a cosine to 0, by step, as a share of a head's peak rate."""

    warmup_steps: int
    total_steps: int

    def __call__(self, step: jax.Array) -> jax.Array:
        return optax.warmup_cosine_decay_schedule(0.0, 1.0, *self)(step)


class Statistics(NamedTuple):
    """Of pooled vectors, float32 [F] each."""

    mean: jax.Array
    variance: jax.Array


@partial(
    jax.tree_util.register_dataclass, data_fields=("params", "moments", "running"), meta_fields=()
)
@dataclass(frozen=True)
class Head:
    """One head, or with axes in front a grid of them: all that training changes."""

    params: Params  # pooling, weight [classes, F], bias [classes]
    moments: optax.OptState
    running: Statistics


class Rows(NamedTuple):
    """Rows of a batch."""

    inputs: jax.Array  # [layers, B, …], of every layer
    label: jax.Array  # int32 [B]
    weight: jax.Array  # float32 [B], 1; 0 of a row that is not to count


class Found(NamedTuple):
    """What heads make of some rows: how many of those that count they classify right."""

    top1: jax.Array  # float32 [layers, rates]
    top5: jax.Array  # float32 [layers, rates]
    labels: jax.Array  # float32 [classes], rows of each class


def init_head(design: Design, key: jax.Array) -> Head:
    """A head before its first step."""
    shape = design.num_classes, design.width  # this way round its gradient is faster on CPUs
    weight = jax.random.truncated_normal(named_key(key, "weight"), -2.0, 2.0, shape)
    params = {
        "pooling": design.pooling.init(named_key(key, "pooling")),
        "weight": design.init_std * weight,
        "bias": jnp.zeros(design.num_classes),
    }
    running = Statistics(jnp.zeros(design.width), jnp.ones(design.width))
    return Head(params, design.optimizer.init(params), running)


@partial(jax.jit, static_argnums=(0, 1, 2))
def init_grid(design: Design, layers: int, rates: int, seed: int) -> Head:
    """A grid [layers, rates]; all heads of a layer begin alike."""
    keys = jax.random.split(jax.random.key(seed), layers)
    of_layers = jax.vmap(partial(init_head, design))(keys)
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], rates, axis=1), of_layers)


def count_parameters(design: Design) -> int:
    """Trained scalars of one head."""
    head = jax.eval_shape(partial(init_head, design), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(head.params))


# Training


def statistics_of(x: jax.Array, weight: jax.Array) -> Statistics:
    """Mean and biased variance of [B, F] over the rows that count."""

    def plain(x: jax.Array) -> Statistics:
        mean = jnp.mean(x, axis=0)
        return Statistics(mean, jnp.mean(jnp.square(x - mean), axis=0))

    def weighted(x: jax.Array) -> Statistics:
        share = (weight / jnp.maximum(jnp.sum(weight), 1.0))[:, None]
        mean = jnp.sum(x * share, axis=0)
        return Statistics(mean, jnp.sum(jnp.square(x - mean) * share, axis=0))

    # Nearly always all rows count, and on CPUs sums with weights take five times as long.
    return jax.lax.cond(jnp.all(weight == 1.0), plain, weighted, x)


def moved(running: Statistics, batch: Statistics, weight: jax.Array) -> Statistics:
    """The running statistics after a batch, whose variance they get unbiased."""
    count = jnp.sum(weight)
    unbiased = batch.variance * count / jnp.maximum(count - 1.0, 1.0)
    new = Statistics(batch.mean, unbiased)
    return jax.tree.map(lambda old, new: old + NORM_MOMENTUM * (new - old), running, new)


def class_scores(design: Design, params: Params, pooled: jax.Array, norm: Statistics) -> jax.Array:
    """Of pooled vectors [B, F], normed by some statistics: float32 [classes, B].

    The norm goes into the linear map, and classes come first: on CPUs that halves a step.
    """
    weight, bias = params["weight"], params["bias"]
    if design.normed:
        weight = weight * jax.lax.rsqrt(norm.variance + NORM_EPS)
        bias = bias - matmul(weight, norm.mean)
    return matmul(weight, pooled.T) + bias[:, None]


def losses_of(scores: jax.Array, label: jax.Array) -> jax.Array:
    """Cross entropy of scores [classes, B], float32 [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, label, axis=0)


def update_head(design: Design, head: Head, rows: Rows, rate: jax.Array) -> tuple[Head, jax.Array]:
    """One step of one head on one layer's rows -> the head, and the loss before it, float32 []."""

    def loss(params: Params) -> tuple[jax.Array, Statistics]:
        pooled, norm = design.pooling(params["pooling"], rows.inputs), head.running
        if design.normed:
            norm = statistics_of(pooled, rows.weight)
        losses = losses_of(class_scores(design, params, pooled, norm), rows.label)
        return jnp.sum(losses * rows.weight) / jnp.maximum(jnp.sum(rows.weight), 1.0), norm

    (value, norm), grads = jax.value_and_grad(loss, has_aux=True)(head.params)
    running = moved(head.running, norm, rows.weight) if design.normed else head.running
    updates, moments = design.optimizer.update(grads, head.moments, head.params)
    params = jax.tree.map(lambda p, u: p - rate * u, head.params, updates)
    return Head(params, moments, running), value


def update_grid(design: Design, grid: Head, rows: Rows, rates: jax.Array) -> tuple[Head, jax.Array]:
    """One step of a grid [layers, rates] -> the grid, and the losses before it [layers, rates].

    Args:
        rates: learning rates of this step, float32 [rates].
    """

    def of_layer(layer: tuple[Head, jax.Array]) -> tuple[Head, jax.Array]:
        heads, inputs = layer
        update = partial(update_head, design)
        return jax.vmap(update, (0, None, 0))(heads, rows._replace(inputs=inputs), rates)

    return jax.lax.map(of_layer, (grid, rows.inputs))


# Evaluation


def running_scores(design: Design, head: Head, inputs: jax.Array) -> jax.Array:
    """Of one head on one layer's inputs [B, …], by the running statistics: float32 [classes, B]."""
    pooled = design.pooling(head.params["pooling"], inputs)
    return class_scores(design, head.params, pooled, head.running)


def evaluate_grid(design: Design, grid: Head, rows: Rows) -> Found:
    """What a grid [layers, rates] makes of rows."""

    def of_head(head: Head, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        place = place_of(running_scores(design, head, inputs), rows.label)
        right = place < 1, place < min(TOP, design.num_classes)
        return tuple(jnp.sum(each * rows.weight) for each in right)

    def of_layer(layer: tuple[Head, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jax.vmap(of_head, (0, None))(*layer)

    labels = jnp.zeros(design.num_classes).at[rows.label].add(rows.weight)
    return Found(*jax.lax.map(of_layer, (grid, rows.inputs)), labels)


def place_of(scores: jax.Array, label: jax.Array) -> jax.Array:
    """How many of the scores [classes, B] come before the label's, int32 [B]; of equals the first.

    Of scores that are not numbers all of them do: a head that diverged knows nothing.
    """
    own = jnp.take_along_axis(scores, label[None], axis=0)
    not_earlier = jnp.arange(len(scores))[:, None] >= label
    return jnp.sum(~((scores < own) | ((scores == own) & not_earlier)), axis=0)
