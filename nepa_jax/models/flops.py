"""Exact multiply-add counts of the networks."""

from nepa_jax.models.layers import BlockConfig


def block_macs(config: BlockConfig, tokens: int) -> int:
    """Multiply-adds of a stack's forward pass for one image; attention counted over all pairs."""
    dim, hidden = config.embed_dim, config.mlp_dim
    matrices = 3 if config.gated else 2
    per_token = 4 * dim * dim + matrices * dim * hidden
    return config.depth * (tokens * per_token + 2 * tokens * tokens * dim)


def training_flops(forward_macs: float) -> float:
    """Two FLOPs per multiply-add; the backward pass costs twice the forward pass."""
    return 6.0 * forward_macs
