"""The settings of a loader, and what can be wrong with them.

Loads nothing: a config is checked before any library that it needs is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from nepa_jax.base.memory import memory_bytes
from nepa_jax.base.sections import WRONG, Bound, fitted, shown, wanted


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


BOUNDS = {
    "image_size": Bound("[1, 16384]", "224"),  # px
    "batch_size": Bound("[1, 16777216]", "256"),
    "crop_scale": Bound("(0, 1]", "(0.2, 1.0)"),
    "crop_pct": Bound("[0.1, 1]", "0.875"),
    "num_workers": Bound("[0, 256]", "0"),  # of 45 MiB each; no machine has more cores to spare
    "num_threads": Bound("[1, 1024]", "one per core"),  # 50 keep a bucket busy, all waiting for it
    "read_ahead": Bound("[1, 1024]", "2"),
    "max_bad_rate": Bound("[0, 1]", "0.001"),
    "erase_prob": Bound("[0, 1]", "0.25"),
}

# Named here, where nothing heavy is loaded; each is implemented in a table of these keys.
CHOICES: dict[str, tuple[str | int, ...]] = {
    "channels": (1, 3),  # decode.MODES
    "augment": ("random_crop", "center_crop", "none"),  # transforms.AUGMENTS
    "interpolation": ("bilinear", "bicubic"),  # resize.INTERPOLATIONS
    "decode": ("exact", "fast"),  # resize.RESIZES
    "policy": ("none", "rand_augment", "three_augment", "color_jitter"),  # augment.POLICIES
}

WORKER_BYTES = 64 << 20  # a process, without its batch
SHARE_OF_MEMORY = 0.75  # that the loader may want

# These have other names in the config of a run.
PLACES = {"image_size": "model.image_size", "channels": "model.in_channels", "seed": "run.seed"}


def problems(config: LoaderConfig, num_hosts: int = 1) -> list[str]:
    """One line for each wrong value, as `data.key = value: problem; try ...`."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    wrong = {
        key: f"not a choice; try {' or '.join(map(str, known))}"
        for key, known in CHOICES.items()
        if values[key] not in known
    }
    for key, value in values.items():
        if key not in CHOICES and key != "path" and (problem := _problem(key, value)):
            wrong[key] = problem
    for key, problem in _contradictions(config, num_hosts):
        wrong.setdefault(key, problem)
    return [_line(config, key, problem) for key, problem in wrong.items()]


def memory_problems(config: LoaderConfig, num_hosts: int) -> list[str]:
    """A line if the batches and processes of a loader without other problems do not fit here."""
    batch = math.prod(config.image_size) * config.channels * config.batch_size // num_hosts
    batches = max(config.read_ahead, config.num_workers + 1) + 1  # the last one is in use
    workers = config.num_workers * (WORKER_BYTES + batch)
    wanted, limit = batches * batch + workers, SHARE_OF_MEMORY * memory_bytes()
    if wanted <= limit:
        return []
    key = "num_workers" if workers > config.read_ahead * batch else "read_ahead"
    key = "batch_size" if 3 * batch > limit else key  # three are the least there can be
    text = (
        f"the loader would keep {wanted >> 20:,} MiB, of {batch >> 20:,} MiB per batch, and this "
        f"machine has {memory_bytes() >> 20:,} MiB; try a smaller one"
    )
    return [_line(config, key, text)]


def _line(config: LoaderConfig, key: str, problem: str) -> str:
    return f"{PLACES.get(key, f'data.{key}')} = {shown(getattr(config, key))}: {problem}"


def _problem(key: str, value: Any) -> str | None:
    """What is wrong with a value by itself."""
    default, bound = getattr(LoaderConfig, key), BOUNDS.get(key)
    if isinstance(default, tuple) and (not isinstance(value, tuple) or len(value) != 2):
        return f"must be two numbers in brackets; try {default}"
    if (fit := fitted(value, default, bound)) is WRONG:
        return f"wrong type; write {wanted(default, bound)}"
    return None if bound is None or bound.holds(fit) else bound.words()


def _contradictions(config: LoaderConfig, num_hosts: int) -> Iterator[tuple[str, str]]:
    """Keys whose values, each right by itself, do not go together, and why."""
    if not _problem("batch_size", config.batch_size) and config.batch_size % num_hosts:
        multiple = max(1, round(config.batch_size / num_hosts)) * num_hosts
        yield "batch_size", f"must be a multiple of the {num_hosts} hosts; try {multiple}"
    if (
        not _problem("crop_scale", config.crop_scale)
        and config.crop_scale[0] > config.crop_scale[1]
    ):
        yield "crop_scale", "the low end comes first; try (0.2, 1.0)"
