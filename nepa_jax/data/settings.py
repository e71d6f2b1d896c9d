"""The settings of a loader, and what can be wrong with them.

Loads nothing: a config is checked before any library that it needs is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

from nepa_jax.base.memory import memory_bytes


@dataclass(frozen=True)
class LoaderConfig:
    """What a batch is made of, and how.

    batch_size counts all hosts. image_size is (height, width). `augment`, `crop_scale`,
    `crop_pct`, `interpolation`, `flip`, `decode`, `policy` and `erase_prob` are those of
    Transform. num_workers is the number of processes (0: none but this one), each with
    num_threads threads. read_ahead is in batches, and at least as many as are under way at a
    time: one more than there are processes. Neither these three nor the number of hosts change
    a batch. A share of undecodable examples above max_bad_rate is an error.
    """

    path: str
    split: str = "train"
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    batch_size: int = 256
    seed: int = 0
    augment: str = "random_crop"
    crop_scale: tuple[float, float] = (0.2, 1.0)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    flip: bool = True
    num_workers: int = 0
    num_threads: int = 8
    read_ahead: int = 2
    max_bad_rate: float = 0.001
    shuffle: bool = True
    decode: str = "exact"
    policy: str = "none"
    erase_prob: float = 0.0


class Range(NamedTuple):
    """The least and greatest value of a number, and one that is worth a try."""

    least: float
    most: float
    suggestion: str


RANGES = {
    "batch_size": Range(1, 1 << 24, "256"),
    "crop_pct": Range(0.1, 1, "0.875"),
    "num_workers": Range(0, 256, "0"),  # of 45 MiB each; no machine has more cores to spare
    "num_threads": Range(1, 1024, "one per core"),  # 50 keep a bucket busy, all waiting for it
    "read_ahead": Range(1, 1024, "2"),
    "max_bad_rate": Range(0, 1, "0.001"),
    "erase_prob": Range(0, 1, "0.25"),
}

# Named here, where nothing heavy is loaded; each is implemented in a table of these keys.
CHOICES: dict[str, tuple[str | int, ...]] = {
    "channels": (1, 3),  # decode.MODES
    "augment": ("random_crop", "center_crop", "none"),  # transforms.AUGMENTS
    "interpolation": ("bilinear", "bicubic"),  # resize.INTERPOLATIONS
    "decode": ("exact", "fast"),  # resize.RESIZES
    "policy": ("none", "rand_augment", "three_augment", "color_jitter"),  # augment.POLICIES
}

MAX_SIDE = 1 << 14  # px
WORKER_BYTES = 64 << 20  # a process, without its batch
SHARE_OF_MEMORY = 0.75  # that the loader may want

# These belong to the model in the config of a run.
PLACES = {"image_size": "model.image_size", "channels": "model.in_channels"}


def problems(config: LoaderConfig, num_hosts: int = 1) -> list[str]:
    """One line for each wrong value, as `data.key = value: problem; try ...`."""
    wrong = {
        key: f"not a choice; try {' or '.join(map(str, known))}"
        for key, known in CHOICES.items()
        if getattr(config, key) not in known
    }
    wrong |= {
        key: f"must be a number from {bound.least} to {bound.most}; try {bound.suggestion}"
        for key, bound in RANGES.items()
        if not _within(key, getattr(config, key))
    }
    wrong |= _other_problems(config, wrong, num_hosts)
    return [_line(config, key, text) for key, text in wrong.items()]


def memory_problems(config: LoaderConfig, num_hosts: int) -> list[str]:
    """A line if the batches and processes of a loader without other problems do not fit here."""
    batch = math.prod(config.image_size) * config.channels * config.batch_size // num_hosts
    batches = max(config.read_ahead, config.num_workers + 1) + 1  # the last one is in use
    wanted = batches * batch + config.num_workers * (WORKER_BYTES + batch)
    if wanted <= SHARE_OF_MEMORY * memory_bytes():
        return []
    shares = {
        "batch_size": 3 * batch,
        "read_ahead": config.read_ahead * batch,
        "num_workers": config.num_workers * (WORKER_BYTES + 2 * batch),
    }
    text = (
        f"the loader would keep {wanted >> 20:,} MiB, of {batch >> 20:,} MiB per batch, and this "
        f"machine has {memory_bytes() >> 20:,} MiB; try a smaller one"
    )
    return [_line(config, max(shares, key=shares.__getitem__), text)]


def _line(config: LoaderConfig, key: str, text: str) -> str:
    return f"{PLACES.get(key, f'data.{key}')} = {getattr(config, key)}: {text}"


def _within(key: str, value: Any) -> bool:
    bound = RANGES[key]
    kind = Real if isinstance(getattr(LoaderConfig, key), float) else Integral
    return _is(kind, value) and bound.least <= value <= bound.most


def _other_problems(config: LoaderConfig, known: dict[str, str], num_hosts: int) -> dict[str, str]:
    wrong, sides, scale = {}, config.image_size, config.crop_scale
    if not (_are(Integral, sides) and min(sides) > 0 and max(sides) <= MAX_SIDE):
        wrong["image_size"] = f"must be a side, or (height, width), of 1 to {MAX_SIDE} px; try 224"
    if "batch_size" not in known and config.batch_size % num_hosts:
        multiple = max(1, round(config.batch_size / num_hosts)) * num_hosts
        wrong["batch_size"] = f"must be a multiple of the {num_hosts} hosts; try {multiple}"
    if not (_are(Real, scale) and 0 < scale[0] <= scale[1] <= 1):
        wrong["crop_scale"] = "must be (low, high) with 0 < low <= high <= 1; try (0.2, 1.0)"
    return wrong


def _are(kind: type, pair: Sequence[Any]) -> bool:
    return len(pair) == 2 and all(_is(kind, value) for value in pair)


def _is(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
