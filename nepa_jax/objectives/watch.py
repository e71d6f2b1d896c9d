"""Linear heads that watch an objective while it trains: what its features hold, layer by layer.

They learn from the step's own forward pass, in a program of their own: each layer's mean patch vector of
every image, as the step gives it, is standardised by running statistics and read by a linear map to the
classes with an Adam of its own. The program that trains is one and the same with and without them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from nepa_jax.mesh import replicated
from nepa_jax.objectives.base import Batch, Metrics, Objective, abstract_model

WINDOW = 100  # steps, about, that running statistics go over
EPSILON = 1e-6  # of variances


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Heads:
    """The heads of the chosen layers, float32; they begin as zeros."""

    kernel: jax.Array  # [layers, D, classes]
    bias: jax.Array  # [layers, classes]
    moments: optax.OptState  # Adam's
    mean: jax.Array  # of the features, [layers, D]
    variance: jax.Array  # the same
    top1: jax.Array  # [layers], running, of each batch before it is learned from
    count: jax.Array  # int32 [], batches learned from


Look = Callable[[Heads, jax.Array, jax.Array, jax.Array], tuple[Heads, Metrics, jax.Array]]


def chosen_layers(config: ConfigDict) -> tuple[int, ...]:
    """Those of ``evals.layers``, from 1; without any half, three quarters and all of the way up."""
    depth = config.model.depth
    asked = config.evals.layers or [-(-depth * quarters // 4) for quarters in (2, 3, 4)]
    return tuple(dict.fromkeys(layer % (depth + 1) for layer in asked))


def heads_for(config: ConfigDict, objective: Objective, num_classes: int) -> Heads | None:
    """The shapes of a run's heads; None where none are asked for, or where they have nothing to learn.

    Args:
        config: resolved.
        num_classes: of the training images; 0: they have no labels.
    """
    if not (config.evals.online and num_classes):
        return None
    layers, pooled = chosen_layers(config), pooled_shape(config, objective)
    if pooled is None or len(pooled) != 3 or pooled[0] < max(layers):
        return None
    return jax.eval_shape(lambda: no_heads(len(layers), pooled[2], num_classes))


def pooled_shape(config: ConfigDict, objective: Objective) -> tuple[int, ...] | None:
    """Of what a loss gives for heads, found by tracing it; None: it gives nothing."""
    rows = config.data.batch_size // config.optim.accum_steps
    pixels = (rows, *config.model.image_size, config.model.in_channels)
    numbers = jax.ShapeDtypeStruct((rows,), jnp.int32)
    batch = {"image": jax.ShapeDtypeStruct(pixels, jnp.uint8), "row": numbers, "label": numbers}
    init_extra = getattr(objective, "init_extra", lambda config, model: None)

    def pooled(model: Any, batch: Batch) -> jax.Array | None:
        return objective.loss(model, init_extra(config, model), batch, jax.random.key(0))[1].pooled

    found = jax.eval_shape(pooled, abstract_model(objective.init_model, config), batch)
    return None if found is None else found.shape


def no_heads(layers: int, width: int, num_classes: int) -> Heads:
    """Heads that have seen nothing."""
    kernel, bias = jnp.zeros((layers, width, num_classes)), jnp.zeros((layers, num_classes))
    rows = jnp.zeros((layers, width))
    moments = optax.adam(0.0).init((kernel, bias))
    return Heads(kernel, bias, moments, rows, rows, jnp.zeros(layers), jnp.zeros((), jnp.int32))


def looking(config: ConfigDict, mesh: Mesh) -> Look:
    """Jitted: heads, features of every layer [depth, B, D], labels int32 [B] and the number of the step
    -> heads one batch further, their running accuracies as ``eval/linear/layer_N``, and that number.

    Heads and number are donated. What takes the number waits for the heads: on devices that are threads of
    several processes, two programs with sums over all of them must not run at a time.
    """
    layers = chosen_layers(config)

    def look(
        heads: Heads, pooled: jax.Array, labels: jax.Array, step: jax.Array
    ) -> tuple[Heads, Metrics, jax.Array]:
        after = learned(heads, pooled[jnp.array(layers) - 1], labels, config.evals.lr)
        names = [f"eval/linear/layer_{layer}" for layer in layers]
        seen = dict(zip(names, after.top1, strict=True))
        return jax.lax.optimization_barrier((after, seen, step))

    return jax.jit(look, donate_argnums=(0, 3), out_shardings=replicated(mesh))


def learned(heads: Heads, x: jax.Array, labels: jax.Array, lr: float) -> Heads:
    """The heads after features [layers, B, D] of images with labels int32 [B].

    They stay as they were if any number of theirs would become infinite or NaN.
    """
    away = x - heads.mean[:, None]
    # Before the first statistics there is no scale: nothing is read from features then.
    scale = jnp.where(heads.count > 0, jax.lax.rsqrt(heads.variance + EPSILON), 0.0)
    normed, weights = away * scale[:, None], (heads.kernel, heads.bias)
    losses = partial(cross_entropy, x=normed, labels=jnp.broadcast_to(labels, x.shape[:2]))
    grads, top1 = jax.grad(losses, has_aux=True)(weights)
    updates, moments = optax.adam(lr).update(grads, heads.moments)
    # Running: plain means over the first WINDOW batches, from then on exponential ones.
    share, shift = 1.0 / jnp.minimum(heads.count + 1, WINDOW), jnp.mean(away, axis=1)
    spread = jnp.var(x, axis=1) + (1.0 - share) * shift**2
    after = Heads(
        *optax.apply_updates(weights, updates),
        moments=moments,
        mean=heads.mean + share * shift,
        variance=heads.variance + share * (spread - heads.variance),
        top1=heads.top1 + share * (top1 - heads.top1),
        count=heads.count + 1,
    )
    finite = jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(after)]))
    return jax.tree.map(partial(jnp.where, finite), after, heads)


def cross_entropy(
    weights: tuple[jax.Array, jax.Array], x: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sum over layers of the mean over images of [layers, B, D]; and the accuracies [layers]."""
    kernel, bias = weights
    logits = jnp.einsum("lbd,ldc->lbc", x, kernel) + bias[:, None]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(jnp.mean(losses, axis=1)), jnp.mean(logits.argmax(2) == labels, axis=1)
