"""The vision transformer that every objective shares."""

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from nepa_jax.models import posemb, rope
from nepa_jax.models.layers import (
    TOKEN_INIT,
    BlockConfig,
    Linear,
    run_blocks,
    stack_blocks,
)
from nepa_jax.models.norms import layer_norm
from nepa_jax.models.sizes import image_size


@dataclass(frozen=True, kw_only=True)
class ViTConfig(BlockConfig):
    """The whole architecture; field names are those of the config's ``model`` and ``run`` sections."""

    image_size: tuple[int, int]
    patch_size: int
    in_channels: int = 3
    pixel_mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # of pixels in [0, 1]
    pixel_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    posemb: str = "none"  # or "sincos", "learned"
    rope_base: float | None = None  # None: no rotary embedding
    rope_rescale: float = 1.0  # 1 = off; the factor is drawn from [1/a, a] in training
    rope_jitter: float = 1.0  # the same for each axis by itself
    rope_shift: float = 0.0
    final_norm: bool = True

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def patch_dim(self) -> int:
        return self.patch_size**2 * self.in_channels


def vit_config(config: ConfigDict) -> ViTConfig:
    """The architecture of a resolved run config."""
    values = config.model.to_dict() | config.run.to_dict() | {"image_size": image_size(config)}
    return ViTConfig(**{f.name: values[f.name] for f in fields(ViTConfig) if f.name in values})


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cuts [B, H, W, C] into [B, N, P·P·C] in raster order; inside: row, column, channel."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return patches.swapaxes(2, 3).reshape(batch, rows * columns, -1)


def unpatchify(patches: jax.Array, grid: tuple[int, int], patch_size: int) -> jax.Array:
    """The inverse of :func:`patchify`: [B, N, P·P·C] -> [B, H, W, C]."""
    tiles = patches.reshape(patches.shape[0], *grid, patch_size, patch_size, -1).swapaxes(2, 3)
    return tiles.reshape(patches.shape[0], grid[0] * patch_size, grid[1] * patch_size, -1)


def patch_means(tokens: jax.Array) -> jax.Array:
    """Means over the patches of [B, 1 + T, D], float32 [B, D], through which no gradient goes."""
    tokens = jax.lax.stop_gradient(tokens).astype(jnp.float32)
    # The class token is put out, not cut off: a slice would shift all others within a TPU's tiles.
    is_patch = jax.lax.broadcasted_iota(jnp.int32, tokens.shape, 1) > 0
    return jnp.sum(tokens, axis=1, where=is_patch) / (tokens.shape[1] - 1)


class ViT(nnx.Module):
    """Patch embedding, class token, positions, blocks, final norm.

    An objective puts them together: it decides which patches are embedded, which tokens go through
    the blocks and under which mask.
    """

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        dim = config.embed_dim
        self.patch_embed = Linear((config.patch_dim,), (dim,), ("patch", "embed"), config, rngs)
        self.cls_token = nnx.Param(TOKEN_INIT(rngs.params(), (dim,)), axes=("norm",))
        if config.posemb == "learned":
            table = TOKEN_INIT(rngs.params(), (1 + config.num_patches, dim))
            self.pos_embed = nnx.Param(table, axes=("tokens", "embed"))
        self.blocks = stack_blocks(config, rngs)
        if config.final_norm:
            self.norm = layer_norm(dim, config.norm_eps, rngs)
        self.config = config

    @jax.named_scope("embed")
    def patches(self, images: jax.Array) -> jax.Array:
        """uint8 [B, H, W, C] -> normalised float32 patches [B, N, P·P·C]."""
        mean, std = jnp.array(self.config.pixel_mean), jnp.array(self.config.pixel_std)
        return patchify((images.astype(jnp.float32) / 255.0 - mean) / std, self.config.patch_size)

    def grid(self, images: jax.Array) -> tuple[int, int]:
        """Patches down and across of these images, which need not have the training size."""
        return images.shape[1] // self.config.patch_size, images.shape[2] // self.config.patch_size

    @jax.named_scope("embed")
    def embed(self, patches: jax.Array) -> jax.Array:
        """Projects patches [B, N, P·P·C] to float32 embeddings [B, N, D], without positions."""
        return self.patch_embed(patches).astype(jnp.float32)

    def positions(self, grid: tuple[int, int]) -> jax.Array:
        """Absolute table for the class token and the patches of a grid, float32 [1 + N, D]."""
        dim = self.config.embed_dim
        if self.config.posemb == "sincos":
            return jnp.pad(jnp.asarray(posemb.sincos_table(grid, dim)), ((1, 0), (0, 0)))
        if self.config.posemb == "none":
            return jnp.zeros((1 + grid[0] * grid[1], dim))
        table = self.pos_embed[...]
        patches = posemb.resize_table(table[1:], self.config.grid, grid)
        return jnp.concatenate([table[:1], patches])

    def rope(self, grid: tuple[int, int], key: jax.Array | None = None) -> rope.RopeTable | None:
        """Rotary tables of [class token, patches]; a key draws the training-time change of scale."""
        config = self.config
        if config.rope_base is None:
            return None
        coords = rope.patch_coords(grid)
        if key is not None:
            draw = rope.draw_coords(key, config.rope_shift, config.rope_jitter, config.rope_rescale)
            coords = rope.move_coords(coords, draw)
        return rope.add_class_token(rope.rope_table(coords, config.head_dim, config.rope_base))

    def prepend_class(self, tokens: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, 1 + T, D]."""
        cls = jnp.broadcast_to(self.cls_token[...], (tokens.shape[0], 1, tokens.shape[2]))
        return jnp.concatenate([cls, tokens], axis=1)

    def hidden_states(self, images: jax.Array, *, causal: bool) -> jax.Array:
        """Embeddings and every block's output, deterministic: float32 [depth + 1, B, 1 + N, D]."""
        tokens = self.tokens(images)
        rope = self.rope(self.grid(images))
        _, states = run_blocks(self.blocks, tokens, rope, causal=causal, collect=lambda x: x)
        return jnp.concatenate([tokens[None], states])

    def tokens(self, images: jax.Array) -> jax.Array:
        """What the first block gets of uint8 images [B, H, W, C]: float32 [B, 1 + N, D]."""
        embeddings = self.embed(self.patches(images))
        return self.prepend_class(embeddings) + self.positions(self.grid(images))
