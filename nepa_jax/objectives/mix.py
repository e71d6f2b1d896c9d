"""What a supervised loss learns from: mixup (arXiv 1710.09412), CutMix (1905.04899), random erasing
(1708.04896) and smoothed labels, on the device, as pure functions under jit.

As timm defines them, which the fine-tuning codes of both MAE and NEPA call: images are erased first
and then mixed, and all of it happens to normalised pixels.
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.keys import named_key
from nepa_jax.base.sections import Bound
from nepa_jax.mesh import constrain
from nepa_jax.models.vit import ViTConfig
from nepa_jax.objectives.base import Batch, image_keys
from nepa_jax.objectives.erasing import erase

# By the version of timm: what is added to the side of CutMix's box before its second half is taken. In
# the older ones a box of an odd side lacks a row, and the labels go by what is left of its area.
BOXES = {"timm-0.3.2": 0, "timm-1.0.31": 1}


@dataclass(frozen=True)
class Mix:
    """How the images and labels of a batch are mixed; all off as it stands.

    mixup, cutmix: the parameter of the Beta distribution; 0 turns the method off. mixup_prob: the
    share of the draws that mix. mixup_switch_prob: of these, the share that are CutMix where both are
    on. mixup_group: images that share a draw; both releases draw once for the batch of a process, of
    32 images in MAE's command and of 128 in NEPA's. cutmix_box: one of ``BOXES``. label_smoothing
    applies to every label, erase_prob to every image.
    """

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_group: int = 32
    cutmix_box: str = "timm-1.0.31"
    label_smoothing: float = 0.0
    erase_prob: float = 0.0

    @property
    def mixes(self) -> bool:
        return max(self.mixup, self.cutmix) > 0 and self.mixup_prob > 0

    @property
    def cutmix_share(self) -> float:
        """Of the draws that mix, those that are CutMix."""
        return self.mixup_switch_prob if self.mixup and self.cutmix else float(self.cutmix > 0)


# The keys of a config's section `objective`, beside num_classes, and their ranges.
DEFAULTS = {each.name: each.default for each in fields(Mix) if each.name != "num_classes"}
BOUNDS = {
    "mixup": Bound("[0, 100]", "0.8, or 0 for off"),
    "cutmix": Bound("[0, 100]", "1.0, or 0 for off"),
    "mixup_prob": Bound("[0, 1]", "1.0"),
    "mixup_switch_prob": Bound("[0, 1]", "0.5"),
    "mixup_group": Bound("[2, 16777216]", "32"),
    "label_smoothing": Bound("[0, 1)", "0.1"),
    "erase_prob": Bound("[0, 1]", "0.25"),
}


def mix_config(config: ConfigDict) -> Mix:
    """What a run's config says; keys that it lacks, as one of an import, are off."""
    objective = config.objective
    found = {name: objective.get(name, default) for name, default in DEFAULTS.items()}
    return Mix(objective.num_classes, **found)


def problems(config: ConfigDict) -> list[str]:
    """What is wrong beside the ranges of single keys: a line each."""
    mixing, found = mix_config(config), []
    if mixing.cutmix_box not in BOXES:
        found.append(
            f"objective.cutmix_box = {mixing.cutmix_box}: not a choice; try {' or '.join(BOXES)}"
        )
    if mixing.mixes and mixing.mixup_group % 2:
        found.append(
            f"objective.mixup_group = {mixing.mixup_group}: images are mixed in pairs, so it must be "
            f"even; try {mixing.mixup_group + 1}"
        )
    parts = 2 * config.optim.accum_steps
    if mixing.mixes and config.data.batch_size % parts:
        found.append(
            f"data.batch_size = {config.data.batch_size}: images are mixed in pairs, in each of "
            f"optim.accum_steps = {config.optim.accum_steps} parts; try "
            f"{max(1, round(config.data.batch_size / parts)) * parts}"
        )
    return found


def mix(mixing: Mix, vit: ViTConfig, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The images and targets that a batch of training stands for.

    Each image is mixed with the one half a batch further on. So the pairs of a batch are those of its
    microbatches (step.split_rows), and as draws are keyed by rows of the whole batch, neither
    accumulation nor the mesh nor the number of hosts change anything.

    Args:
        batch: ``image`` uint8 [B, H, W, C], ``label`` int32 [B], ``row`` int32 [B].
        key: of the step.

    Returns:
        Images [B, H, W, C], in the scale of the input, float32 if anything was done to them; and
        targets float32 [B, num_classes] that sum to 1.

    Raises:
        UserError: there is no partner for each image.
    """
    images, targets = batch["image"], smooth_labels(batch["label"], mixing)
    if mixing.mixes and len(images) % 2:
        raise UserError(
            f"a batch of {len(images)} images cannot be mixed in pairs; try an even one"
        )
    if mixing.erase_prob:
        keys = image_keys(key, batch, "erase")
        images = erase(images, keys, mixing.erase_prob, vit.pixel_mean, vit.pixel_std)
    if not mixing.mixes:
        return images, targets
    draws = draw(mixing, named_key(key, "mix"), batch["row"], images.shape[1:3])
    return blend(images, targets, draws, mixing.cutmix_box)


class Draws(NamedTuple):
    """What was drawn for each of B images; those of a group have the same."""

    mixes: jax.Array  # bool [B]
    cuts: jax.Array  # bool [B], by CutMix
    share: jax.Array  # float32 [B], of the image itself
    center: jax.Array  # int32 [B, 2], row and column, of the box


def draw(mixing: Mix, key: jax.Array, rows: jax.Array, size: tuple[int, int]) -> Draws:
    """What the images of these rows [B] of the whole batch get."""

    def of_group(key: jax.Array) -> Draws:
        mix_key, cut_key, share_key, *center_keys = jax.random.split(key, 5)
        cuts = jax.random.uniform(cut_key) < mixing.cutmix_share
        alpha = jnp.where(cuts, mixing.cutmix, mixing.mixup or 1.0)
        center = [jax.random.randint(k, (), 0, n) for k, n in zip(center_keys, size, strict=True)]
        return Draws(
            jax.random.uniform(mix_key) < mixing.mixup_prob,
            cuts,
            jax.random.beta(share_key, alpha, alpha),
            jnp.stack(center),
        )

    groups = jnp.minimum(rows, partners(rows)) // (mixing.mixup_group // 2)
    groups = constrain(groups, None)
    draws = jax.vmap(of_group)(jax.vmap(jax.random.fold_in, (None, 0))(key, groups))
    # On every device all of them: else each turn of the loop that draws a share waits for all devices.
    return jax.tree.map(lambda each: constrain(each, *[None] * each.ndim), draws)


def partners(rows: jax.Array) -> jax.Array:
    """For each row [B, …] the one half a batch further on."""
    return jnp.roll(rows, len(rows) // 2, axis=0)


def blend(
    images: jax.Array, targets: jax.Array, draws: Draws, box: str
) -> tuple[jax.Array, jax.Array]:
    """Images [B, H, W, C] and targets [B, K] as drawn, float32.

    With CutMix the targets go by the area that is left of the box inside of the image.
    """
    inside = cut_box(draws, images.shape[1:3], box)
    share = jnp.where(draws.cuts, 1.0 - jnp.mean(inside, axis=(1, 2)), draws.share)
    share = jnp.where(draws.mixes, share, 1.0)[:, None]
    own = jnp.where(draws.cuts[:, None, None], 1.0 - inside, draws.share[:, None, None])
    own = jnp.where(draws.mixes[:, None, None], own, 1.0)[..., None]
    images = own * images + (1.0 - own) * partners(images)
    return images, share * targets + (1.0 - share) * partners(targets)


def cut_box(draws: Draws, size: tuple[int, int], box: str) -> jax.Array:
    """A box of 1 - share of the area, clipped at the border: bool [B, H, W], true inside."""
    ranges = []
    for axis, length in enumerate(size):
        side = (length * jnp.sqrt(1.0 - draws.share)).astype(jnp.int32)
        start = draws.center[:, axis] - side // 2
        stop = draws.center[:, axis] + (side + BOXES[box]) // 2
        at = jnp.arange(length)
        ranges.append((at >= start[:, None]) & (at < stop[:, None]))
    return ranges[0][:, :, None] & ranges[1][:, None, :]


def smooth_labels(labels: jax.Array, mixing: Mix) -> jax.Array:
    """One-hot labels float32 [B, num_classes] with label_smoothing spread over all classes, the true
    one among them."""
    kept = jax.nn.one_hot(labels, mixing.num_classes) * (1.0 - mixing.label_smoothing)
    return kept + mixing.label_smoothing / mixing.num_classes


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross entropy of class scores [B, K] with targets [B, K] that sum to 1, float32 []."""
    return jnp.mean(optax.softmax_cross_entropy(logits.astype(jnp.float32), targets))
