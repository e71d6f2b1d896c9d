"""MAE: rebuild the pixels of removed patches (He et al. 2022, arXiv 2111.06377, section 3).

The encoder sees only the kept patches; they are gathered before the embedding, so that removed
ones cost nothing. A light decoder sees them all.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from ml_collections import ConfigDict

from nepa_jax.base.sections import Bound, section_problems
from nepa_jax.models.decoder import Decoder, decoder_config
from nepa_jax.models.flops import block_macs, training_flops
from nepa_jax.models.layers import run_blocks
from nepa_jax.models.masking import Masking, gather_tokens, num_kept, random_masking
from nepa_jax.models.vit import ViT, ViTConfig, patch_means, unpatchify, vit_config
from nepa_jax.objectives.base import (
    Aux,
    Batch,
    Description,
    Features,
    count_parameters,
    encode_vit,
    image_keys,
)  # fmt: skip
from nepa_jax.objectives.pictured import NOTHING, Pictures, rgb, to_pixels


class MAE(nnx.Module):
    """Encoder, decoder, and the two choices of the loss."""

    def __init__(self, vit: ViT, decoder: Decoder, mask_ratio: float, norm_pix_loss: bool):
        self.vit = vit
        self.decoder = decoder
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss


# The released code's, with their ranges.
DEFAULTS = dict(
    name="", mask_ratio=0.75, norm_pix_loss=True, decoder_embed_dim=512, decoder_depth=8,
    decoder_num_heads=16, decoder_mlp_ratio=4.0,
)  # fmt: skip
BOUNDS = {
    "mask_ratio": Bound("(0, 1)", "0.75"),
    "decoder_embed_dim": Bound("[4, 65536]", "512"),
    "decoder_depth": Bound("[1, 1000]", "8"),
    "decoder_num_heads": Bound("[1, 4096]", "16"),
    "decoder_mlp_ratio": Bound("(0, 64]", "4.0"),
}

images_apart = True


def problems(config: ConfigDict) -> list[str]:
    """What is wrong with this objective's part of a config."""
    objective = config.objective
    found = list(section_problems("objective", objective, DEFAULTS, BOUNDS).values())
    if found:
        return found
    width, heads = objective.decoder_embed_dim, objective.decoder_num_heads
    if num_kept(vit_config(config).num_patches, objective.mask_ratio) < 1:
        found.append(
            f"objective.mask_ratio = {objective.mask_ratio}: keeps none of "
            f"{vit_config(config).num_patches} patches; try 0.75"
        )
    if width % 4 or width % heads:
        found.append(
            f"objective.decoder_num_heads = {heads}: must divide objective.decoder_embed_dim = "
            f"{width}, a multiple of 4; try decoder_embed_dim=512, decoder_num_heads=16"
        )
    return found


def init_model(config: ConfigDict, rngs: nnx.Rngs) -> MAE:
    vit, decoder = _configs(config)
    return MAE(
        ViT(vit, rngs),
        Decoder(decoder, vit.embed_dim, rngs),
        config.objective.mask_ratio,
        config.objective.norm_pix_loss,
    )


def _configs(config: ConfigDict) -> tuple[ViTConfig, ViTConfig]:
    vit = vit_config(config)
    return vit, decoder_config(vit, config.objective)


def loss(model: MAE, extra: None, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
    """Mean squared error over the removed patches' pixels, float32 []."""
    patches, grid = model.vit.patches(batch["image"]), model.vit.grid(batch["image"])
    noise = draw_noise(image_keys(key, batch, "mask"), patches.shape[1])
    masking = random_masking(noise, model.mask_ratio)
    keys = image_keys(key, batch, "drop_path")
    latent, means = encode_kept(model.vit, patches, masking, grid, keys)
    predictions = model.decoder(latent, masking.ids_restore, grid)
    targets = pixel_targets(patches, model.norm_pix_loss)
    value, aux = pixel_loss(predictions, targets, masking.mask)
    return value, aux._replace(pooled=means)


def reconstruct(
    model: MAE, patches: jax.Array, grid: tuple[int, int], masking: Masking
) -> jax.Array:
    """Predicted targets [B, N, P·P·C] of patches [B, N, P·P·C], from those that are kept."""
    latent, _ = encode_kept(model.vit, patches, masking, grid)
    return model.decoder(latent, masking.ids_restore, grid)


def draw_noise(keys: jax.Array, num_patches: int) -> jax.Array:
    """Uniform noise [B, N], a row from each image's own key."""
    return jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys)


def encode_kept(
    vit: ViT,
    patches: jax.Array,
    masking: Masking,
    grid: tuple[int, int],
    keys: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The encoder's normed output on [class token, kept patches], float32 [B, 1 + K, D].

    And every layer's means over the kept patches, float32 [depth, B, D].
    """
    tokens = kept_tokens(vit, patches, masking, grid)
    hidden, means = run_blocks(
        vit.blocks, tokens, keys=keys, collect=patch_means, side_by_side=True
    )
    return vit.norm(hidden), means


def kept_tokens(vit: ViT, patches: jax.Array, masking: Masking, grid: tuple[int, int]) -> jax.Array:
    """Embeds the class token and the kept patches, each with its own position."""
    positions = vit.positions(grid)
    kept = vit.embed(gather_tokens(patches, masking.ids_keep))
    tokens = vit.prepend_class(kept + positions[1:][masking.ids_keep])
    return tokens.at[:, 0].add(positions[0])


@jax.named_scope("loss")
def pixel_targets(patches: jax.Array, norm_pix_loss: bool) -> jax.Array:
    """The pixels to predict; ``norm_pix_loss`` standardises each patch (unbiased variance)."""
    if not norm_pix_loss:
        return patches
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return (patches - mean) * jax.lax.rsqrt(variance + 1e-6)


@jax.named_scope("loss")
def pixel_loss(
    predictions: jax.Array, targets: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Aux]:
    """Mean over each patch's pixels, then over the removed patches of all images.

    The metrics tell whether anything is learned: the loss of predicting the batch's mean patch
    everywhere, and the loss on the visible patches, which is not trained.
    """

    def mean(values: jax.Array, weights: jax.Array) -> jax.Array:
        return jnp.sum(values * weights, axis=(0, 1)) / jnp.sum(weights)

    errors = jnp.mean(jnp.square(predictions - targets), axis=-1)
    one_patch = Partial(
        error_of_one_patch,
        jnp.mean(targets, axis=(0, 1)),
        mean(targets, mask[..., None]),
        mean(jnp.mean(jnp.square(targets), axis=-1), mask),
    )
    visible = mean(jax.lax.stop_gradient(errors), 1.0 - mask)
    return mean(errors, mask), Aux({"loss_mean_patch": one_patch, "loss_visible": visible})


def error_of_one_patch(patch: jax.Array, mean: jax.Array, mean_square: jax.Array) -> jax.Array:
    """Mean squared error of predicting one patch [P·P·C] everywhere.

    From the mean of the targets [P·P·C], and that of their squares over pixels too [].
    """
    return mean_square + jnp.mean(patch * (patch - 2.0 * mean))


def encode(model: MAE, images: jax.Array, layer: int | None = -1) -> Features:
    """Features of the whole image: nothing is masked."""
    return encode_vit(model.vit, images, layer, causal=False)


def pictures(model: MAE, images: jax.Array) -> Pictures:
    """Each image, what is left of it under a mask that is always the same, and what is rebuilt.

    Visible patches are the image's own. With normalised targets a removed one gets its true mean and
    deviation back, which the model never predicted.
    """
    patches, grid = model.vit.patches(images), model.vit.grid(images)
    noise = jax.random.uniform(jax.random.key(0), patches.shape[:2])
    masking = random_masking(noise, model.mask_ratio)
    predictions = reconstruct(model, patches, grid, masking)
    if model.norm_pix_loss:
        predictions = denormalize(predictions, patches)
    hidden = jnp.broadcast_to(masking.mask[..., None] > 0, patches.shape)
    hidden = unpatchify(hidden, grid, model.vit.config.patch_size)
    rebuilt = to_pixels(model.vit, predictions, grid)
    rows = [images, *(jnp.where(hidden, fill, images) for fill in (jnp.uint8(NOTHING), rebuilt))]
    return Pictures(rgb(jnp.stack(rows, axis=1)), ("image", "visible", "rebuilt"))


def denormalize(predictions: jax.Array, patches: jax.Array) -> jax.Array:
    """Turns standardised patches [B, N, P·P·C] back by the statistics of the true ones."""
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
    return predictions * jnp.sqrt(variance + 1e-6) + mean


def describe(config: ConfigDict) -> Description:
    vit, decoder = _configs(config)
    kept = num_kept(vit.num_patches, config.objective.mask_ratio)
    encoder_macs = kept * vit.patch_dim * vit.embed_dim + block_macs(vit, 1 + kept)
    decoder_macs = (
        (1 + kept) * vit.embed_dim * decoder.embed_dim
        + block_macs(decoder, 1 + vit.num_patches)
        + vit.num_patches * decoder.embed_dim * decoder.patch_dim
    )
    parameters = count_parameters(init_model, config)
    return Description(1 + kept, parameters, training_flops(encoder_macs + decoder_macs))
