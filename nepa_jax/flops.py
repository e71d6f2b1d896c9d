"""Exact multiply-add counts of the networks, and peak rates of chips."""

from nepa_jax.models.layers import BlockConfig

# Dense bfloat16 peak of one jax device, FLOP/s, by device_kind, from the vendors' data sheets.
PEAK_FLOPS: dict[str, float] = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def block_macs(config: BlockConfig, tokens: int) -> int:
    """Multiply-adds of a stack's forward pass for one image; attention counted over all pairs."""
    dim, hidden = config.embed_dim, config.mlp_dim
    matrices = 3 if config.gated else 2
    per_token = 4 * dim * dim + matrices * dim * hidden
    return config.depth * (tokens * per_token + 2 * tokens * tokens * dim)


def training_flops(forward_macs: float) -> float:
    """Two FLOPs per multiply-add; the backward pass costs twice the forward pass."""
    return 6.0 * forward_macs


def mfu(flops_per_s: float, device_kind: str, num_devices: int) -> float | None:
    """Share of the devices' peak, or None where the peak is not known."""
    peak = PEAK_FLOPS.get(device_kind)
    return None if peak is None else flops_per_s / (peak * num_devices)
