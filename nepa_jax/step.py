"""The training state, how it begins, and the one jitted update."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.tree_util import Partial
from ml_collections import ConfigDict

from nepa_jax.base.compiler import compiler_options
from nepa_jax.base.keys import named_key
from nepa_jax.mesh import (
    apart_along_data,
    batch_sharding,
    layer_sharding,
    replicated,
    state_shardings,
)
from nepa_jax.objectives.base import Aux, Batch, Metrics, Objective
from nepa_jax.objectives.watch import Heads, Look, heads_for, looking
from nepa_jax.optim import learning_rate, make_optimizer, trained_alone


@jax.tree_util.register_dataclass
@dataclass
class TrainState:
    """All that a run carries from step to step, and all that a checkpoint holds."""

    step: jax.Array  # int32 [], updates tried
    model: nnx.Module  # float32 parameters
    opt_state: optax.OptState
    ema: nnx.Module | None
    extra: Any  # the objective's own, None for most
    grad_norm_mean: jax.Array  # float32 [], running mean over the updates that were kept
    skipped: jax.Array  # int32 [], updates thrown away: not finite, or a spike
    skipped_in_a_row: jax.Array  # int32 []
    heads: Heads | None = None  # that watch

    @property
    def kept(self) -> jax.Array:
        """Updates that count, int32 []: what the optimizer's own count and the schedule go by."""
        return self.step - self.skipped


Program = Callable[[TrainState, Batch], tuple[TrainState, Metrics, jax.Array | None]]


@dataclass(frozen=True)
class Update:
    """One step: the program that trains and, after it, that of the heads if a state has any.

    The one knows nothing of the other, so that what is trained is to the bit the same with and without.
    """

    program: Program  # jitted or compiled; of a state without heads, its last result ``Aux.pooled``
    look: Look

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """The state after the step, and what is to be logged; the state that goes in is donated."""
        after, metrics, pooled = self.program(replace(state, heads=None), batch)
        if state.heads is None:
            return after, metrics
        heads, seen, step = self.look(state.heads, pooled, batch["label"], after.step)
        return replace(after, heads=heads, step=step), metrics | seen

    def lower(self, state: TrainState, batch: Batch) -> Any:
        """The program alone, to be compiled for these shapes."""
        return self.program.lower(replace(state, heads=None), batch)

    def compiled(self, state: TrainState, batch: Batch) -> "Update":
        return replace(self, program=self.lower(state, batch).compile())

    def memory_analysis(self) -> Any:
        """Of the compiled program."""
        return self.program.memory_analysis()


def init_state(
    config: ConfigDict, objective: Objective, weights: nnx.Module | None = None
) -> TrainState:
    """The state before step 0: a function of the weights it begins with, or of the seed alone."""
    model = weights
    if model is None:
        model = objective.init_model(config, nnx.Rngs(config.run.seed))
    init_extra = getattr(objective, "init_extra", lambda config, model: None)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        model=model,
        opt_state=make_optimizer(config).init(model),
        ema=None if config.optim.ema_decay is None else jax.tree.map(jnp.copy, model),
        extra=init_extra(config, model),
        grad_norm_mean=jnp.zeros((), jnp.float32),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
    )


def abstract_state(config: ConfigDict, objective: Objective, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without heads, and without computing anything."""
    return _placed(jax.eval_shape(lambda: init_state(config, objective)), mesh)


def with_heads(
    target: TrainState, config: ConfigDict, objective: Objective, num_classes: int = 1000
) -> TrainState:
    """An abstract state with the heads that its run is to have; see :func:`heads_for`.

    Args:
        num_classes: of ImageNet-1k where there are no data.
    """
    shapes = heads_for(config, objective, num_classes)
    return replace(target, heads=_placed(shapes, target.step.sharding.mesh))


def _placed(shapes: Any, mesh: Mesh) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def zeros_at(target: Any) -> Any:
    """Zeros where the leaves of an abstract tree say."""
    zeros = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)  # noqa: E731
    return jax.jit(lambda: jax.tree.map(zeros, target), out_shardings=shardings_of(target))()


def shardings_of(target: Any) -> Any:
    """How the leaves of an abstract tree lie."""
    return jax.tree.map(lambda leaf: leaf.sharding, target)


def abstract_batch(
    config: ConfigDict, labelled: bool, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Every array of a run's batch, of all hosts together, and how it lies on the devices.

    ``image`` uint8 [B, H, W, C]; ``label`` int32 [B], of labelled sets; ``mask`` uint8 [B, H, W], where
    ``data.masks`` asks for it; ``row`` int32 [B], the place in the batch, on which the randomness of a
    row depends.

    Args:
        config: resolved.
    """
    rows, sharding = (config.data.batch_size,), batch_sharding(mesh)
    pixels = (*rows, *config.model.image_size, config.model.in_channels)
    arrays = {"image": (pixels, np.uint8), "row": (rows, np.int32)}
    if labelled:
        arrays["label"] = (rows, np.int32)
    if config.data.masks:
        arrays["mask"] = (pixels[:-1], np.uint8)
    return {name: jax.ShapeDtypeStruct(*array, sharding=sharding) for name, array in arrays.items()}


def create_state(
    config: ConfigDict,
    objective: Objective,
    target: TrainState,
    weights: nnx.Module | None = None,
) -> TrainState:
    """Initialises the state where ``target`` (:func:`abstract_state`) says, each shard in place."""
    shardings = shardings_of(replace(target, heads=None))
    state = jax.jit(partial(init_state, config, objective), out_shardings=shardings)(weights)
    return replace(state, heads=zeros_at(target.heads))


def make_update(config: ConfigDict, objective: Objective, target: TrainState) -> Update:
    """The jitted update of a state laid out as ``target``; the state that goes in is donated.

    One step: gradients (over ``accum_steps`` microbatches), clip, AdamW, EMA. A step whose loss,
    gradient or update is not finite, or whose gradient is a spike (:func:`is_spike`), changes nothing
    and is counted. The learning rate logged is the one that was applied, or would have been.
    """
    optimizer, schedule = make_optimizer(config), learning_rate(config)
    mesh, own = target.step.sharding.mesh, shardings_of(replace(target, heads=None))

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics, jax.Array | None]:
        key = jax.random.fold_in(named_key(jax.random.key(config.run.seed), "step"), state.step)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            loss, aux, grads = gradients(objective, state, batch, key, config.optim.accum_steps)
            grads = trained_alone(config, grads)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.model)
            model = optax.apply_updates(state.model, updates)
        grad_norm, update_norm = optax.tree.norm(grads), optax.tree.norm(updates)
        kept = replace(
            state,
            model=model,
            opt_state=opt_state,
            ema=followed(state, model, config.optim.ema_decay),
            extra=moved_extra(objective, state, model, aux),
            grad_norm_mean=running_mean(grad_norm, state),
            skipped_in_a_row=jnp.zeros_like(state.skipped_in_a_row),
        )
        lost = counted(state)
        # Finite weights and a finite update make finite weights: those need no look of their own.
        ok = jnp.all(jnp.isfinite(jnp.stack([loss, grad_norm, update_norm])))
        ok &= stays_finite(state.extra, kept.extra)
        ok &= ~is_spike(grad_norm, state, config.optim.spike_factor)
        after = jax.tree.map(partial(jnp.where, ok), kept, lost)
        metrics = aux.metrics | {
            "loss": loss,
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "param_norm": optax.tree.norm(after.model),
            "lr": schedule(state.kept),
            "skipped_steps": after.skipped,
            "skipped_in_a_row": after.skipped_in_a_row,
        }
        return replace(after, step=state.step + 1), metrics, aux.pooled

    program = jax.jit(
        update, donate_argnums=0, out_shardings=(own, replicated(mesh), layer_sharding(mesh)),
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )  # fmt: skip
    return Update(program, looking(config, mesh))


def moved_extra(objective: Objective, state: TrainState, model: nnx.Module, aux: Aux) -> Any:
    """What the objective keeps beside its model, after an update that gave ``model``."""
    follow = getattr(objective, "after_update", lambda extra, model, aux, step: extra)
    return follow(state.extra, model, aux, state.step)


def counted(state: TrainState) -> TrainState:
    """As before the update, which is thrown away."""
    in_a_row = state.skipped_in_a_row + 1
    return replace(state, skipped=state.skipped + 1, skipped_in_a_row=in_a_row)


SPIKE_AFTER = 100  # kept updates; before, gradients change too fast to tell
MEAN_OVER = 100  # updates, about


def is_spike(grad_norm: jax.Array, state: TrainState, factor: float | None) -> jax.Array:
    """Whether a gradient is ``factor`` times as long as those before it on average, bool []."""
    if factor is None:
        return jnp.zeros((), bool)
    return (state.kept >= SPIKE_AFTER) & (grad_norm > factor * state.grad_norm_mean)


def running_mean(grad_norm: jax.Array, state: TrainState) -> jax.Array:
    """The mean of the first hundred, from then on an exponential one, float32 []."""
    return state.grad_norm_mean + (grad_norm - state.grad_norm_mean) / jnp.minimum(
        state.kept + 1, MEAN_OVER
    )


def stays_finite(old: Any, new: Any) -> jax.Array:
    """Whether every number that was finite still is, bool []; what began infinite may stay so."""
    stays = jnp.ones((), bool)
    for o, n in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        if jnp.issubdtype(n.dtype, jnp.inexact):
            stays &= jnp.all(jnp.isfinite(n) | ~jnp.isfinite(o))
    return stays


def gradients(
    objective: Objective, state: TrainState, batch: Batch, key: jax.Array, accum_steps: int
) -> tuple[jax.Array, Aux, nnx.Module]:
    """Loss, aux and gradients of the mean over the batch; microbatches one after the other."""
    whole = state.model, state.extra, key
    if accum_steps == 1:
        ((loss, aux), grads), pooled = of_rows(objective, *whole, batch)
        return loss, evaluated(aux, pooled), grads
    microbatches = jax.tree.map(lambda rows: split_rows(rows, accum_steps), batch)
    one_by_one = partial(accumulated, objective)
    if getattr(objective, "images_apart", False):
        one_by_one = partial(apart_along_data, one_by_one)
    ((loss, aux), grads), pooled = one_by_one(whole, microbatches)
    return loss, evaluated(aux, jax.tree.map(join_rows, pooled)), grads


def of_rows(
    objective: Objective, model: nnx.Module, extra: Any, key: jax.Array, rows: Batch
) -> tuple[Any, jax.Array | None]:
    """What is a mean over images, and what is not: ((loss, aux), gradients) and vectors of each."""
    with_aux = jax.value_and_grad(objective.loss, has_aux=True)
    (loss, aux), grads = with_aux(model, extra, rows, key)
    return ((loss, aux._replace(pooled=None)), grads), aux.pooled


def accumulated(
    objective: Objective, whole: tuple[nnx.Module, Any, jax.Array], microbatches: Batch
) -> tuple[Any, jax.Array | None]:
    """:func:`of_rows` of microbatches [parts, B / parts, …]: their mean, and [parts, …] of the rest."""
    model, extra, key = whole

    def accumulate(total: Any, rows: Batch) -> tuple[Any, jax.Array | None]:
        # Cast anew in every microbatch: of kernels cast once, TPUs copy all layers' in every layer.
        own, rows = jax.lax.optimization_barrier((model, rows))
        means, pooled = of_rows(objective, own, extra, key, rows)
        return jax.tree.map(jnp.add, total, means), pooled

    first = jax.tree.map(lambda rows: rows[0], microbatches)
    shapes, _ = jax.eval_shape(partial(of_rows, objective), *whole, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, pooled = jax.lax.scan(accumulate, zeros, microbatches)
    parts = len(jax.tree.leaves(microbatches)[0])
    return jax.tree.map(lambda leaf: leaf / parts, total), pooled


def evaluated(aux: Aux, pooled: jax.Array | None) -> Aux:
    """With the numbers to log, of means over the whole batch, and what is of single images."""
    values = {n: v() if isinstance(v, Partial) else v for n, v in aux.metrics.items()}
    return aux._replace(metrics=values, pooled=pooled)


def split_rows(rows: jax.Array, parts: int) -> jax.Array:
    """[B, …] -> [parts, B / parts, …]; every part takes rows from every device, so none move."""
    return rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)


def join_rows(parts: jax.Array) -> jax.Array:
    """[parts, layers, B / parts, D] -> [layers, B, D], in the order before :func:`split_rows`."""
    _, layers, _, width = parts.shape
    return jnp.moveaxis(parts, 0, 2).reshape(layers, -1, width)


def followed(state: TrainState, model: nnx.Module, decay: float | None) -> nnx.Module | None:
    """The average after an update. It begins as a copy of the weights after the first one that is
    kept, as in NEPA's released code: those of step 0 have no share in it."""
    if state.ema is None:
        return None
    moved = moving_average(state.ema, model, decay)
    return jax.tree.map(partial(jnp.where, state.kept == 0), model, moved)


def moving_average(average: nnx.Module, model: nnx.Module, decay: float) -> nnx.Module:
    """decay · average + (1 - decay) · model, without warm-up as in NEPA's released code.

    In float32 decay and 1 - decay do not add up to 1: summed as above, an average of constant weights
    at .9999 would shrink by 1.7e-4.
    """
    return jax.tree.map(lambda a, m: a + (1.0 - decay) * (m - a), average, model)
