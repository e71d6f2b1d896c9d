"""MAE in PyTorch: reconstructs the pixels of masked patches (arXiv 2111.06377).

Parameter names are those of the official code, so that weights load in both; the attention is
PyTorch's fused one. Shapes: B images, N patches, K of them kept, D width, P patch side, C channels.
"""

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Images [B, C, height, width] -> patch embeddings [B, N, D]."""

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear maps around exact GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, dim: int, heads: int, hidden: int, eps: float, qkv_bias: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.attn, self.mlp = Attention(dim, heads, qkv_bias), Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def blocks(depth: int, dim: int, heads: int, ratio: float, shape: ConfigDict) -> nn.ModuleList:
    hidden = round(dim * ratio)
    made = (Block(dim, heads, hidden, shape.norm_eps, shape.qkv_bias) for _ in range(depth))
    return nn.ModuleList(made)


class MaskedAutoencoder(nn.Module):
    """Encoder of the kept patches, decoder of all, and the loss.

    Built of a run's config; the position tables come with the weights, and are trained only where they
    are learned.
    """

    def __init__(self, config: ConfigDict) -> None:
        super().__init__()
        shape, objective = config.model, config.objective
        dim, width, eps = shape.embed_dim, objective.decoder_embed_dim, shape.norm_eps
        height, across = (side // shape.patch_size for side in shape.image_size)
        self.patch, self.mask_ratio = shape.patch_size, objective.mask_ratio
        self.norm_pix_loss = objective.norm_pix_loss
        self.patch_embed = PatchEmbed(shape.in_channels, self.patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        tokens, learned = 1 + height * across, shape.posemb == "learned"
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim), requires_grad=learned)
        self.blocks = blocks(shape.depth, dim, shape.num_heads, shape.mlp_ratio, shape)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.decoder_embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, width), requires_grad=False)
        self.decoder_blocks = blocks(
            objective.decoder_depth, width, objective.decoder_num_heads,
            objective.decoder_mlp_ratio, shape,
        )  # fmt: skip
        self.decoder_norm = nn.LayerNorm(width, eps=eps)
        self.decoder_pred = nn.Linear(width, self.patch**2 * shape.in_channels)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Mean squared error over the pixels of removed patches, [].

        ``images`` float32 [B, C, height, width], normalised. The patches of least ``noise``, uniform
        [B, N], are kept; None draws it.
        """
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        number = x.shape[1]
        kept = int(number * (1 - self.mask_ratio))
        if noise is None:
            noise = torch.rand(x.shape[:2], device=x.device)
        order = noise.argsort(dim=1)
        places = order.argsort(dim=1)
        predictions = self.decoded(self.encoded(gathered(x, order[:, :kept])), places)
        errors = (predictions - self.targets(images)).square().mean(dim=-1)
        removed = (places >= kept).to(errors.dtype)
        return (errors * removed).sum() / removed.sum()

    def encoded(self, kept: Tensor) -> Tensor:
        """Embeddings of the kept patches [B, K, D] -> [B, 1 + K, D], normed."""
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(kept), -1, -1)
        x = torch.cat((first, kept), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decoded(self, latent: Tensor, places: Tensor) -> Tensor:
        """[B, 1 + K, D] and every patch's place in the order [B, N] -> pixels [B, N, P·P·C]."""
        x = self.decoder_embed(latent)
        removed = places.shape[1] - (x.shape[1] - 1)
        masks = self.mask_token.to(x.dtype).expand(len(x), removed, -1)
        patches = gathered(torch.cat((x[:, 1:], masks), dim=1), places)
        x = torch.cat((x[:, :1], patches), dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def targets(self, images: Tensor) -> Tensor:
        """Pixels of every patch [B, N, P·P·C], each patch standardised if the method does so."""
        rows = images.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        target = rows.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        if not self.norm_pix_loss:
            return target
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        return (target - mean) / (variance + 1e-6).sqrt()


def gathered(x: Tensor, places: Tensor) -> Tensor:
    """Tokens [B, N, D] at places [B, M] -> [B, M, D]."""
    return x.gather(1, places[:, :, None].expand(-1, -1, x.shape[2]))
