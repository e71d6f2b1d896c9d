"""What chips can do, and the topologies of TPUs that can be planned for."""

import math
import re
from typing import NamedTuple

from nepa_jax.base.errors import UserError

GIB = 2**30

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


class Chip(NamedTuple):
    """One jax device of a TPU: a chip, or half a chip where two make one."""

    kind: str  # its device_kind
    hbm_gib: float  # that the compiler gives a program; it keeps a little of the chip's for itself
    hbm_bytes_per_s: float
    link_bytes_per_s: float  # into it, over all of its links to other chips
    flops_per_cycle: float  # of the matrix units, bfloat16: 2 · units · side²
    compiler_name: str = "default"  # of the way its cores are used
    per_chip: int = 1  # devices of a chip

    @property
    def peak_flops(self) -> float:
        return PEAK_FLOPS[self.kind]

    @property
    def clock_hz(self) -> float:
        return self.peak_flops / self.flops_per_cycle


# Memory bandwidth and links: docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x), where the links
# are told for both directions together (v4: for one). Memory: what libtpu says is available. Matrix units:
# the same pages; their product with the clock (1.05, 1.5, 1.75, 1.75, 2.2 GHz) is the peak, and large
# products compiled for each kind take the cycles that follow, to 15 %.
CHIPS: dict[str, Chip] = {
    "v4": Chip("TPU v4", 30.75, 1.228e12, 300e9, 2 * 8 * 128**2, "megacore"),
    "v5e": Chip("TPU v5 lite", 15.75, 0.819e12, 200e9, 2 * 4 * 128**2),
    "v5p": Chip("TPU v5", 95.74, 2.765e12, 600e9, 2 * 8 * 128**2, "megacore"),
    "v6e": Chip("TPU v6 lite", 31.25, 1.64e12, 400e9, 2 * 4 * 256**2),
    "tpu7x": Chip("TPU7x", 94.75, 3.69e12, 300e9, 2 * 4 * 256**2, per_chip=2),
}


class Topology(NamedTuple):
    """Chips of a kind, joined to a grid."""

    name: str
    chip: Chip
    num_chips: int

    @property
    def num_devices(self) -> int:
        return self.num_chips * self.chip.per_chip


def topology_of(name: str) -> Topology:
    """Reads a name such as ``v5e:16x16``; whether there is such a grid is for the compiler to say.

    Raises:
        UserError: it is none.
    """
    kind, _, sides = name.partition(":")
    if kind in CHIPS and re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2}){1,2}", sides):
        return Topology(name, CHIPS[kind], math.prod(map(int, sides.split("x"))))
    raise UserError(
        f"--topology={name}: is no topology of TPUs; write KIND:SIDES with one of {', '.join(CHIPS)}, "
        "e.g. v5e:16x16 or v5p:4x4x8"
    )
