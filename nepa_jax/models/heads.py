"""Heads on top of the shared ViT."""

import jax
import jax.numpy as jnp
from flax import nnx

from nepa_jax.models.layers import run_blocks
from nepa_jax.models.norms import layer_norm
from nepa_jax.models.vit import ViT, patch_means

POOLS = ("mean", "cls", "last")


class Classifier(nnx.Module):
    """ViT, pooling, norm, linear map to class scores.

    ``pool="mean"`` takes the mean of the patch tokens and norms it, as the fine-tuning code of both
    NEPA and MAE does (MAE's ViT then has no final norm); ``"cls"`` and ``"last"`` take one token.
    """

    def __init__(
        self, vit: ViT, num_classes: int, pool: str, causal: bool, rngs: nnx.Rngs,
        head_init: float = 0.0,
    ):  # fmt: skip
        dim = vit.config.embed_dim
        self.vit = vit
        if pool == "mean":
            self.fc_norm = layer_norm(dim, vit.config.norm_eps, rngs)
        self.head = nnx.Linear(
            dim, num_classes, kernel_init=nnx.initializers.normal(head_init), rngs=rngs,
            kernel_metadata={"axes": ("embed", "classes")}, bias_metadata={"axes": ("classes",)},
        )  # fmt: skip
        self.pool = pool
        self.causal = causal

    def features(self, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """What the linear head gets, float32 [B, D]."""
        return self.pooled(self.tokens(images, keys)[0])

    def tokens(
        self,
        images: jax.Array,
        keys: jax.Array | None = None,
        rope_key: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """The last layer's tokens [B, 1 + N, D], and every layer's means of patches [depth, B, D].

        Args:
            keys: [B], to train with drop path.
            rope_key: to train with moved rotary coordinates, as in pretraining.
        """
        vit = self.vit
        hidden, means = run_blocks(
            vit.blocks,
            vit.tokens(images),
            vit.rope(vit.grid(images), rope_key),
            causal=self.causal,
            keys=keys,
            collect=patch_means,
        )
        return (vit.norm(hidden) if vit.config.final_norm else hidden), means

    def pooled(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, 1 + N, D] -> [B, D]."""
        if self.pool == "mean":
            return self.fc_norm(jnp.mean(tokens[:, 1:], axis=1))
        return tokens[:, 0 if self.pool == "cls" else -1]

    def __call__(self, images: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Class scores, float32 [B, classes]."""
        return self.head(self.features(images, keys))
