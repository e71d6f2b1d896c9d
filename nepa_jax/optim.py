"""The optimizer: clip, AdamW, and a table of which parameters get which learning rate and decay.

A parameter stands in one place of the network, by its name (``PLACES``). A place has a peak rate, and a
power of ``optim.layer_decay`` that is multiplied with it: the deeper a layer, the smaller its steps
(Clark et al. 2020, ELECTRA, section 3.4). Pretraining leaves ``layer_decay`` out: one rate for all.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from nepa_jax.base.trees import leaf_name, named_leaves

# Of the parameters whose names begin so; the first line that fits. Blocks are a place each.
PLACES = (
    ("vit/patch_embed", "patch_embed"),
    ("vit/cls_token", "embeddings"),
    ("vit/pos_embed", "embeddings"),
    ("vit/blocks", "block"),
    ("fc_norm", "top"),
    ("", "head"),  # the classifier, the final norm, all that stands on an encoder
)

# Never decayed: norms, biases, LayerScale. Class and mask tokens and learned position tables are, as in
# both released pretraining codes and NEPA's fine-tuning, but for MAE's fine-tuning.
NO_DECAY = ("bias", "scale", "layer_scale1", "layer_scale2")
TOKENS = ("cls_token", "mask_token", "pos_embed")

Rate = Callable[[Any], jax.Array | float]  # by step


def places(name: str, depth: int) -> tuple[str, ...]:
    """Where a parameter stands; a stack of blocks in as many places as it has layers."""
    place = next(place for prefix, place in PLACES if name.startswith(prefix))
    return tuple(f"block {k}" for k in range(1, depth + 1)) if place == "block" else (place,)


def exponent(config: ConfigDict, place: str) -> int:
    """The power of ``optim.layer_decay`` at a place: 0 above the blocks, and from the top block down
    ``layer_decay_offset`` and one more for each (0 in NEPA's code, 1 in MAE's: the same number is
    another schedule)."""
    depth, offset = config.model.depth, config.optim.layer_decay_offset
    if place in ("patch_embed", "embeddings"):
        return depth + offset
    return depth - int(place.partition(" ")[2]) + offset if place.startswith("block ") else 0


def peak(config: ConfigDict, place: str) -> float:
    """The largest rate of a place before layer decay; 0 if it is frozen."""
    optim = config.optim
    if place == "patch_embed" and optim.freeze_patch_embed:
        return 0.0
    return optim.head_lr if place == "head" and optim.head_lr is not None else optim.lr


def warmup_steps(config: ConfigDict, place: str) -> int:
    """Of a place: with ``optim.layer_warmup`` the longer, the smaller its rate, and 1 at the top
    (NEPA's released schedulers.py)."""
    steps, optim = config.schedule.warmup_steps, config.optim
    if not (optim.layer_warmup and steps):
        return steps
    return max(1, steps - round(steps * optim.layer_decay ** exponent(config, place)))


def rate(config: ConfigDict, place: str) -> Rate:
    """Linear warm-up from 0, then half a cosine or a straight line to ``schedule.final_lr``, times the
    layer's decay."""
    if not (top := peak(config, place)):
        return lambda step: 0.0
    final, total, warmup = (
        config.schedule.final_lr, config.schedule.total_steps, warmup_steps(config, place)
    )  # fmt: skip
    if config.optim.shape == "cosine":
        base = optax.warmup_cosine_decay_schedule(0.0, top, warmup, total, final)
    else:
        up, down = (
            optax.linear_schedule(0.0, top, warmup),
            optax.linear_schedule(top, final, total - warmup),
        )
        base = optax.join_schedules([up, down], [warmup])
    power = exponent(config, place)
    if config.optim.layer_decay is None or not power:
        return base
    return lambda step: base(step) * layer_decay(config, step) ** power


def layer_decay(config: ConfigDict, step: Any) -> jax.Array | float:
    """``optim.layer_decay``, on its way to ``layer_decay_end`` over the whole run if there is one."""
    optim = config.optim
    if optim.layer_decay_end is None:
        return optim.layer_decay
    progress = step / config.schedule.total_steps
    if optim.layer_decay_ramp == "cosine":
        progress = 0.5 * (1.0 - jnp.cos(jnp.pi * progress))
    return optim.layer_decay + (optim.layer_decay_end - optim.layer_decay) * progress


def learning_rate(config: ConfigDict) -> Rate:
    """That of the top, where layer decay changes nothing: what is logged."""
    return rate(config, "top")


def decays(config: ConfigDict, name: str) -> bool:
    """Whether weight decay applies to a parameter."""
    last, optim = name.rpartition("/")[2], config.optim
    exempt = last in NO_DECAY or (last in TOKENS and not optim.decay_tokens)
    return not exempt and not is_frozen(config, name)


def is_frozen(config: ConfigDict, name: str) -> bool:
    return not any(peak(config, place) for place in places(name, config.model.depth))


def by_name(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree with what a function of name and leaf makes of each."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(leaf_name(path), leaf), tree
    )


def trained_alone(config: ConfigDict, grads: Any) -> Any:
    """The gradients with zeros for what is frozen: no norm counts those."""
    return by_name(lambda name, leaf: leaf * 0 if is_frozen(config, name) else leaf, grads)


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW as in both papers: decoupled decay times the learning rate."""
    optim = config.optim
    clip = (
        optax.identity() if optim.clip_norm is None else optax.clip_by_global_norm(optim.clip_norm)
    )
    mask = lambda params: by_name(lambda name, _: decays(config, name), params)  # noqa: E731
    adamw = optax.chain(
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask),
        scale_by_rates(config),
    )
    return optax.chain(clip, adamw)


def scale_by_rates(config: ConfigDict) -> optax.GradientTransformation:
    """Minus the rate of each parameter's place; a stack of blocks has a rate for each layer."""

    def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> Any:
        @cache
        def rate_at(place: str) -> jax.Array | float:
            return rate(config, place)(state.count)

        def scaled(name: str, leaf: jax.Array) -> jax.Array:
            rates = [rate_at(place) for place in places(name, config.model.depth)]
            if len(rates) == 1 or config.optim.layer_decay is None:
                return jnp.array(-rates[0], leaf.dtype) * leaf
            return jnp.stack(rates).reshape(-1, *[1] * (leaf.ndim - 1)) * -leaf

        count = optax.safe_increment(state.count)
        return by_name(scaled, updates), optax.ScaleByScheduleState(count)

    return optax.GradientTransformation(
        lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32)), update
    )


class Row(NamedTuple):
    """Parameters that are treated alike: a line of the table."""

    place: str
    peak_lr: float  # after the warm-up, with the layer's decay as it is at the start; 0: frozen
    warmup_steps: int
    weight_decay: float
    parameters: int
    names: tuple[str, ...]


def table(config: ConfigDict, params: Any) -> list[Row]:
    """Every parameter in one row, by place and decay; of a stack of blocks every layer in one.

    Args:
        config: resolved.
        params: arrays or their shapes.
    """
    rows: dict[tuple[str, bool], list[tuple[str, int]]] = {}
    for name, leaf in named_leaves(params).items():
        stands = places(name, config.model.depth)
        for place in stands:
            members = rows.setdefault((place, decays(config, name)), [])
            members.append((name, leaf.size // len(stands)))
    return [
        Row(
            place,
            peak(config, place) * (config.optim.layer_decay or 1.0) ** exponent(config, place),
            warmup_steps(config, place),
            config.optim.weight_decay if decayed else 0.0,
            sum(size for _, size in members),
            tuple(name for name, _ in members),
        )
        for (place, decayed), members in sorted(rows.items(), key=_from_the_input_up)
    ]


def _from_the_input_up(row: tuple[tuple[str, bool], Any]) -> tuple[int, int, bool]:
    (place, decayed), _ = row
    kind, _, number = place.partition(" ")
    return [name for _, name in PLACES].index(kind), int(number or 0), not decayed


def lars(weight_decay: float = 0.0, momentum: float = 0.9) -> optax.GradientTransformation:
    """LARS as MAE's linear probe has it; the learning rate is to multiply what comes out.

    Of tensors with more than one axis the decayed gradient g + wd·w is scaled by .001·|w| / |g + wd·w|
    (1 where either norm is 0), the others are left alone; then momentum. The momentum holds updates
    before the learning rate, which so acts at once (arXiv 2111.06377, appendix A.1, and the released
    util/lars.py; optax.lars has the learning rate inside).
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=matrices),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=0.001), matrices),
        optax.trace(momentum),
    )


def matrices(params: optax.Params) -> optax.Params:
    """The same tree with True where a tensor has more than one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)
