"""MAE's decoder: light, wide awake only during pretraining (He et al. 2022, section 3)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.models import posemb
from nepa_jax.models.layers import (
    TOKEN_INIT,
    Linear,
    run_blocks,
    stack_blocks,
)
from nepa_jax.models.masking import gather_tokens
from nepa_jax.models.norms import layer_norm
from nepa_jax.models.vit import ViTConfig


def decoder_config(encoder: ViTConfig, objective: ConfigDict) -> ViTConfig:
    """The decoder's blocks: the encoder's kind, another size, no drop path."""
    return replace(
        encoder,
        embed_dim=objective.decoder_embed_dim,
        depth=objective.decoder_depth,
        num_heads=objective.decoder_num_heads,
        mlp_ratio=objective.decoder_mlp_ratio,
        drop_path_rate=0.0,
    )


class Decoder(nnx.Module):
    """Fills the removed places with a mask token and predicts every patch's pixels."""

    def __init__(self, config: ViTConfig, encoder_dim: int, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.embed = Linear((encoder_dim,), (dim,), ("embed", "decoder_embed"), config, rngs)
        self.mask_token = nnx.Param(TOKEN_INIT(rngs.params(), (dim,)), axes=("norm",))
        self.blocks = stack_blocks(config, rngs)
        self.norm = layer_norm(dim, config.norm_eps, rngs)
        self.pred = Linear((dim,), (config.patch_dim,), ("embed", "patch"), config, rngs)
        self.config = config

    @jax.named_scope("embed")
    def tokens(self, latent: jax.Array, ids_restore: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """Encoder output [B, 1 + K, D] -> decoder input [B, 1 + N, D'], positions added."""
        x = self.embed(latent).astype(jnp.float32)
        batch, num_patches = ids_restore.shape
        removed = num_patches - (x.shape[1] - 1)
        masks = jnp.broadcast_to(self.mask_token[...], (batch, removed, x.shape[2]))
        patches = gather_tokens(jnp.concatenate([x[:, 1:], masks], axis=1), ids_restore)
        patches = patches + posemb.sincos_table(grid, self.config.embed_dim)
        return jnp.concatenate([x[:, :1], patches], axis=1)

    def __call__(
        self, latent: jax.Array, ids_restore: jax.Array, grid: tuple[int, int]
    ) -> jax.Array:
        """Predicted pixels of every patch, float32 [B, N, P·P·C]."""
        x, _ = run_blocks(self.blocks, self.tokens(latent, ids_restore, grid))
        with jax.named_scope("loss"):
            return self.pred(self.norm(x)[:, 1:]).astype(jnp.float32)
