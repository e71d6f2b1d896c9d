"""Mixup (arXiv 1710.09412) and CutMix (1905.04899), on the device: pure functions under jit."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from nepa_jax.base.errors import UserError


@dataclass(frozen=True)
class Mix:
    """How the images and labels of a batch are mixed; one draw serves a whole batch.

    mixup_alpha, cutmix_alpha: the parameter of the Beta distribution; 0 turns the method off.
    prob: the share of the batches that are mixed. switch_prob: of these, the share that get
    CutMix where both are on. label_smoothing applies to every batch.

    Raises UserError if a value is out of range.
    """

    num_classes: int
    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        rules = {
            "mixup_alpha": (self.mixup_alpha >= 0, "use 0 (off) or more"),
            "cutmix_alpha": (self.cutmix_alpha >= 0, "use 0 (off) or more"),
            "prob": (0 <= self.prob <= 1, "use a share, 0 to 1"),
            "switch_prob": (0 <= self.switch_prob <= 1, "use a share, 0 to 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "use a share below 1"),
        }
        wrong = {key: remedy for key, (good, remedy) in rules.items() if not good}
        if wrong:
            found = (f"{key}={getattr(self, key)!r}: {remedy}" for key, remedy in wrong.items())
            raise UserError("; ".join(found))


def mix(batch: Mapping[str, jax.Array], key: jax.Array, config: Mix) -> tuple[jax.Array, jax.Array]:
    """Mixes each example with the one half a batch further on.

    So the pairs of a batch are those of its microbatches of an even size (step.split_rows), whose one
    draw is the same too: accumulation changes nothing.

    batch: image [B, H, W, C] of any numeric dtype, and label int [B].
    Returns images float32 [B, H, W, C], in the scale of the input, and labels float32
    [B, num_classes] that sum to 1.
    """
    images = batch["image"].astype(jnp.float32)
    labels = smooth_labels(batch["label"], config)
    mixed_key, cut_key, share_key, box_key = jax.random.split(key, 4)
    mixed = jax.random.uniform(mixed_key) < _mix_prob(config)
    cut = jax.random.uniform(cut_key) < _cutmix_prob(config)
    alpha = jnp.where(cut, config.cutmix_alpha, config.mixup_alpha or 1.0)
    share = jax.random.beta(share_key, alpha, alpha)
    inside = cut_box(box_key, share, images.shape[1:3])

    other, other_labels = (jnp.roll(rows, len(rows) // 2, axis=0) for rows in (images, labels))
    pasted = jnp.where(inside[..., None], other, images)
    blended = share * images + (1 - share) * other
    images = jnp.where(mixed, jnp.where(cut, pasted, blended), images)
    share = jnp.where(mixed, jnp.where(cut, 1 - inside.mean(), share), 1.0)
    return images, share * labels + (1 - share) * other_labels


def smooth_labels(labels: jax.Array, config: Mix) -> jax.Array:
    """One-hot labels float32 [B, num_classes] with label_smoothing spread over all classes."""
    kept = jax.nn.one_hot(labels, config.num_classes) * (1 - config.label_smoothing)
    return kept + config.label_smoothing / config.num_classes


def cut_box(key: jax.Array, kept: jax.Array, size: tuple[int, int]) -> jax.Array:
    """A box at a random centre, of the image's shape and 1 - kept of its area, clipped at the
    border: bool [H, W], true inside."""
    ranges = []
    for length, axis_key in zip(size, jax.random.split(key), strict=True):
        side = (length * jnp.sqrt(1 - kept)).astype(jnp.int32)
        start = jax.random.randint(axis_key, (), 0, length) - side // 2
        at = jnp.arange(length)
        ranges.append((at >= start) & (at < start + side))
    return ranges[0][:, None] & ranges[1][None, :]


def _cutmix_prob(config: Mix) -> float:
    if config.mixup_alpha and config.cutmix_alpha:
        return config.switch_prob
    return float(config.cutmix_alpha > 0)


def _mix_prob(config: Mix) -> float:
    return config.prob if config.mixup_alpha or config.cutmix_alpha else 0.0
