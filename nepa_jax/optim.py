"""The optimizer: clip, AdamW with a weight-decay mask by name, warm-up and cosine."""

import jax
import optax
from ml_collections import ConfigDict

from nepa_jax.base.trees import leaf_name

# Decayed: matrices, class and mask tokens, learned position tables. This is what both released
# codes do in pretraining.
NO_DECAY = ("bias", "scale", "layer_scale1", "layer_scale2")


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up from 0, then half a cosine to ``schedule.final_lr``, by step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.optim.lr,
        warmup_steps=config.schedule.warmup_steps,
        decay_steps=config.schedule.total_steps,
        end_value=config.schedule.final_lr,
    )


def decays(params: optax.Params) -> optax.Params:
    """The same tree with True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: leaf_name(path).rpartition("/")[2] not in NO_DECAY, params
    )


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """AdamW as in both papers: decoupled decay times the learning rate."""
    optim = config.optim
    clip = (
        optax.identity() if optim.clip_norm is None else optax.clip_by_global_norm(optim.clip_norm)
    )
    adamw = optax.adamw(
        learning_rate(config), optim.b1, optim.b2, optim.eps,
        weight_decay=optim.weight_decay, mask=decays,
    )  # fmt: skip
    return optax.chain(clip, adamw)


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
