"""What chips can do."""

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


def mfu(flops_per_s: float, device_kind: str, num_devices: int) -> float | None:
    """Share of the devices' peak, or None where the peak is not known."""
    peak = PEAK_FLOPS.get(device_kind)
    return None if peak is None else flops_per_s / (peak * num_devices)
