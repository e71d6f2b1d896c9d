"""The settings of a loader, and what can be wrong with them.

Loads nothing: a config is checked before any library that it needs is.
"""

import math
import os
from collections.abc import Container, Iterator
from dataclasses import Field, dataclass, field, fields
from typing import Any

from nepa_jax.base.memory import memory_bytes
from nepa_jax.base.sections import WRONG, Bound, fitted, shown, wanted


def key(default: Any, allowed: Bound | tuple[str | int, ...] | None = None) -> Any:
    """A setting with its default, and its range or choices; None: anything of the default's type.

    This is all that a config's section `data`, its checks and the loader's config are made from.
    """
    return field(default=default, metadata={"allowed": allowed})


@dataclass(frozen=True)
class LoaderConfig:
    """What a batch is made of, and how.

    Neither the number of hosts, nor processes, threads and batches ahead change a batch. A share of
    undecodable examples above max_bad_rate is an error.
    """

    path: str = key("")  # a folder written by `nepa-jax data prepare`
    split: str = key("train")
    image_size: tuple[int, int] = key((224, 224), Bound("[1, 16384]", "224"))  # (height, width), px
    channels: int = key(3, (1, 3))  # decode.MODES
    # Of pixels of 0 to 1, one for each channel or for all: what RandAugment moves in from outside.
    pixel_mean: tuple[float, ...] = key(
        (0.485, 0.456, 0.406), Bound("[-10, 10]", "(0.5, 0.5, 0.5)")
    )
    batch_size: int = key(4096, Bound("[1, 16777216]", "256"))  # images per step, of all hosts
    seed: int = key(0)
    masks: bool = key(False)  # of a set that has them: the batch gets the classes of its pixels
    # How images are cut, and masks with them: transforms.CROPS.
    crop: str = key(
        "random", ("random", "random_clipped", "center", "none", "scale_jitter", "whole")
    )
    # Of the pixels with a class that "scale_jitter" shows, those of one class: else another window.
    max_class_share: float = key(1.0, Bound("(0, 1]", "0.75, or 1.0 for any"))
    crop_scale: tuple[float, float] = key((0.2, 1.0), Bound("(0, 1]", "(0.2, 1.0)"))  # of the area
    crop_pct: float = key(0.875, Bound("[0.1, 1]", "0.875"))  # what "center" keeps of a short side
    # How pixels are resampled: resize.INTERPOLATIONS and RESIZES. "fast" has 1.5 times the speed of
    # "exact", which is as Pillow, bit for bit, and is at 49 dB to it.
    interpolation: str = key("bicubic", ("bilinear", "bicubic"))
    resize: str = key("exact", ("exact", "fast"))
    flip: bool = key(True)  # left to right, half of the time
    # For fine-tuning, after the crop and the flip: augment.AUGMENTS. What acts on pixels that the model
    # has normalised (erasing, mixup, cutmix) is the objective's.
    augment: str = key(
        "none", ("none", "rand_augment", "three_augment", "color_jitter", "photometric")
    )
    num_workers: int = key(0, Bound("[0, 256]", "0"))  # processes; no machine has cores for more
    # Decoding threads of each process; 0: one per core. 50 keep a bucket busy, all waiting for it.
    num_threads: int = key(0, Bound("[0, 1024]", "0 for one per core"))
    read_ahead: int = key(4, Bound("[1, 1024]", "2"))  # batches; at least those under way at a time
    max_bad_rate: float = key(0.001, Bound("[0, 1]", "0.001"))

    @property
    def threads(self) -> int:
        return self.num_threads or os.cpu_count() or 1


# These have other names in the config of a run.
PLACES = {
    "image_size": "model.image_size",
    "channels": "model.in_channels",
    "pixel_mean": "model.pixel_mean",
    "seed": "run.seed",
}
# The section `data` of a config: every other one.
DATA = {each.name: each.default for each in fields(LoaderConfig) if each.name not in PLACES}

WORKER_BYTES = 64 << 20  # a process, without its batch
SHARE_OF_MEMORY = 0.75  # that the loader may want


def problems(config: LoaderConfig, num_hosts: int = 1) -> list[str]:
    """One line for each wrong value, as `data.key = value: problem; try ...`."""
    found = {each.name: _problem(each, getattr(config, each.name)) for each in fields(config)}
    wrong = {name: problem for name, problem in found.items() if problem}
    wrong |= _contradictions(config, num_hosts, wrong)
    return [_line(config, name, problem) for name, problem in wrong.items()]


def memory_problems(config: LoaderConfig, num_hosts: int) -> list[str]:
    """A line if the batches and processes of a loader without other problems do not fit here."""
    pixel = config.channels + config.masks
    batch = math.prod(config.image_size) * pixel * config.batch_size // num_hosts
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


def _line(config: LoaderConfig, name: str, problem: str) -> str:
    return f"{PLACES.get(name, f'data.{name}')} = {shown(getattr(config, name))}: {problem}"


def _problem(each: Field, value: Any) -> str | None:
    """What is wrong with a value by itself."""
    default, allowed = each.default, each.metadata["allowed"]
    if isinstance(allowed, tuple):
        choices = " or ".join(map(str, allowed))
        return None if value in allowed else f"not a choice; try {choices}"
    pair = isinstance(default, tuple) and len(default) == 2
    if pair and (not isinstance(value, tuple) or len(value) != 2):
        return f"must be two numbers in brackets; try {default}"
    if (fit := fitted(value, default, allowed)) is WRONG:
        return f"wrong type; write {wanted(default, allowed)}"
    return None if allowed is None or allowed.holds(fit) else allowed.words()


def _contradictions(
    config: LoaderConfig, num_hosts: int, wrong: Container[str]
) -> Iterator[tuple[str, str]]:
    """Keys whose values, each right by itself, do not go together, and why."""
    if "batch_size" not in wrong and config.batch_size % num_hosts:
        multiple = max(1, round(config.batch_size / num_hosts)) * num_hosts
        yield "batch_size", f"must be a multiple of the {num_hosts} hosts; try {multiple}"
    if "crop_scale" not in wrong and config.crop_scale[0] > config.crop_scale[1]:
        yield "crop_scale", "the low end comes first; try (0.2, 1.0)"
    if config.masks and config.augment == "rand_augment":
        yield "augment", "moves pixels, and masks would stay; try photometric, or none"
    if 0 < config.max_class_share < 1 and not (config.masks and config.crop == "scale_jitter"):
        yield "max_class_share", "is of data.masks=True and data.crop=scale_jitter; try 1.0"
