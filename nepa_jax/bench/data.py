"""How fast images get from disk into batches: beside the bare decoding, and beside PyTorch."""

import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from nepa_jax.bench import speed
from nepa_jax.bench.speed import CPU, WALL, Side, Speed, measure, take_turns
from nepa_jax.bench.torch_loader import torch_loader
from nepa_jax.config import loader_config
from nepa_jax.data.augment import AUGMENTS
from nepa_jax.data.decode import decode, decode_pixels
from nepa_jax.data.draws import example_rng
from nepa_jax.data.loader import Loader, LoaderConfig
from nepa_jax.data.records import open_dataset
from nepa_jax.data.resize import INTERPOLATIONS
from nepa_jax.data.transforms import random_resized_crop_box, transform

SAMPLE = 400  # of the data set's images, for all that does not read it through the loader
FAR_STEP = 1_000_000
BARE_SECONDS = 3.0


def bench_data(config: ConfigDict, against_torch: bool = False) -> dict[str, Any]:
    """Measures the input pipeline on the data set of a config.

    All sides take turns, and every ratio is the median of the ratios of ROUNDS rounds. images/s
    are of wall time with all the cores this process may use, images per CPU second of all its
    threads and processes. Returns the figures: `rates` by side, `ratios`, `start_s`,
    `worker_mib`, `cores` and the `load_average` before and after.

    Raises UserError as Loader does, or if PyTorch is asked for and missing.
    """
    cores = sorted(os.sched_getaffinity(0))
    data = replace(loader_config(config), crop="random", num_threads=len(cores), num_workers=0)
    load = os.getloadavg()[0]
    memory, start = _worker_mib(data), _start_times(data)
    images = _some_images(data)
    modes = _mode_rates(images, data)
    with ExitStack() as stack:
        sides = {"bare loop": _bare(images, data), **_loaders(data, stack)}
        if against_torch:
            sides["torch"] = torch_loader(images, data, stack)
        rounds = take_turns(sides)
    return {
        "cores": len(cores),
        "load_average": [load, os.getloadavg()[0]],
        "rates": {**modes, **_medians(rounds)},
        "ratios": {**_mode_ratios(modes), **_ratios(rounds), **_scaling(data, cores)},
        "start_s": start,
        "worker_mib": memory,
    }


def _some_images(config: LoaderConfig) -> list[bytes]:
    records = open_dataset(config.path, config.split)
    return [record.image for record in records.read(range(min(SAMPLE, len(records))))]


# The bare loops: bytes in memory to a crop in memory, one after the other, in one thread.


def _bare(images: Sequence[bytes], config: LoaderConfig) -> Side:
    make = _making(replace(config, flip=False))
    made = (make(images[index], index) for index in cycle(range(len(images))))
    batches = (list(islice(made, config.batch_size)) for _ in count())
    return Side(batches, config.batch_size)


def _mode_rates(images: Sequence[bytes], config: LoaderConfig) -> dict[str, Speed]:
    """All modes take turns at every image: whatever else the machine does, it does to all."""
    modes = {
        "pillow": partial(_pillow, config),
        "exact": _mode("exact", config),
        "fast": _mode("fast", config),
    }
    if config.augment != "none":
        modes["plain"] = _mode(config.resize, config)
        modes[config.augment] = _making(replace(config, flip=False))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in modes}
    for _ in range(speed.ROUNDS):
        for index, image in enumerate(images):
            for name, make in modes.items():
                wall, cpu = time.perf_counter(), time.thread_time()
                make(image, index)
                seconds[name].append((time.perf_counter() - wall, time.thread_time() - cpu))
    return {name: _median_by_image(found, len(images)) for name, found in seconds.items()}


def _median_by_image(seconds: Sequence[tuple[float, float]], number: int) -> Speed:
    """Of each image the median over the rounds, and the rates at which all are made."""
    wall, cpu = np.median(np.reshape(seconds, (-1, number, 2)), axis=0).sum(axis=0)
    return {WALL: number / float(wall), CPU: number / float(cpu)}


def _mode_ratios(rates: dict[str, Speed]) -> dict[str, float]:
    per_cpu = {name: rate[CPU] for name, rate in rates.items()}
    ratios = {f"{mode} / pillow": per_cpu[mode] / per_cpu["pillow"] for mode in ("exact", "fast")}
    augmented = [name for name in AUGMENTS if name in rates]
    return ratios | {f"{name} / plain": per_cpu[name] / per_cpu["plain"] for name in augmented}


def _pillow(config: LoaderConfig, data: bytes, index: int) -> np.ndarray:
    """What torchvision's loader and RandomResizedCrop do."""
    image, rng = decode(data, config.channels), example_rng("bench", 0, index)
    left, top, width, height = random_resized_crop_box(*image.size, rng, config.crop_scale)
    image = image.crop((left, top, left + width, top + height))
    size = config.image_size[::-1]
    return np.asarray(image.resize(size, INTERPOLATIONS[config.interpolation]))


def _mode(mode: str, config: LoaderConfig) -> Callable[[bytes, int], None]:
    return _making(replace(config, resize=mode, flip=False, augment="none"))


def _making(config: LoaderConfig) -> Callable[[bytes, int], None]:
    out = np.empty((*config.image_size, config.channels), np.uint8)

    def make(data: bytes, index: int) -> None:
        pixels, rng = decode_pixels(data, config.channels), example_rng("bench", 0, index)
        transform(config, pixels, rng, out)

    return make


# The loaders.


def _loaders(config: LoaderConfig, stack: ExitStack) -> dict[str, Side]:
    with_workers = replace(config, num_workers=config.num_threads, num_threads=1)
    return {
        "loader": _loader(stack.enter_context(Loader(config))),
        "workers": _loader(stack.enter_context(Loader(with_workers))),
    }


def _loader(loader: Loader) -> Side:
    config = loader.config
    ahead = max(config.read_ahead, config.num_workers + 1, 2)
    return Side(map(loader.batch, count()), config.batch_size, ahead)


# Measuring.


def _worker_mib(config: LoaderConfig) -> dict[str, float]:
    """Memory of the largest of two workers: resident, and without what it shares with others."""
    with Loader(replace(config, num_workers=2)) as loader:
        _loader(loader).draw(-(-speed.IMAGES // config.batch_size))
        found = [
            dict(re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE))
            for child in multiprocessing.active_children()
            for text in [Path(f"/proc/{child.pid}/smaps_rollup").read_text()]
        ]
    return {
        "resident": max(int(f["Rss"]) for f in found) / 1024,
        "proportional": max(int(f["Pss"]) for f in found) / 1024,
        "private": max(int(f["Private_Clean"]) + int(f["Private_Dirty"]) for f in found) / 1024,
    }


def _medians(rounds: Sequence[dict[str, Speed]]) -> dict[str, Speed]:
    return {
        name: {key: statistics.median(each[name][key] for each in rounds) for key in (WALL, CPU)}
        for name in rounds[0]
    }


def _ratios(rounds: Sequence[dict[str, Speed]]) -> dict[str, float]:
    def ratio(name: str, other: str, key: str = CPU) -> float:
        return statistics.median(each[name][key] / each[other][key] for each in rounds)

    ratios = {f"{name} / bare loop": ratio(name, "bare loop") for name in ("loader", "workers")}
    for name in ("loader", "workers") if "torch" in rounds[0] else ():
        ratios[f"{name} / torch"] = ratio(name, "torch")
        ratios[f"{name} / torch, wall"] = ratio(name, "torch", WALL)
    return ratios


def _scaling(config: LoaderConfig, cores: Sequence[int]) -> dict[str, float]:
    """What a second core gives, in images/s of wall time: the loader, and what it could be at most.

    The latter are bare loops in processes that share nothing. They show what the machine has: two
    cores may be two threads of one, or be lent to others for part of the time.
    """
    if len(cores) < 2:
        return {}
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        gains = [
            (_gain(config, cores), _machine_gain(config, pool)) for _ in range(speed.ROUNDS + 1)
        ]
    loader, machine = map(statistics.median, zip(*gains[1:], strict=True))
    return {"two cores / one, wall": loader, "two bare loops / one, wall": machine}


def _gain(config: LoaderConfig, cores: Sequence[int]) -> float:
    return _rate_on(config, cores[:2]) / _rate_on(config, cores[:1])


def _machine_gain(config: LoaderConfig, pool: ProcessPoolExecutor) -> float:
    one, two = (sum(pool.map(_bare_rate, [config] * number)) for number in (1, 2))
    return two / one


def _bare_rate(config: LoaderConfig) -> float:
    """images/s of the bare loop for some seconds."""
    side, done = _bare(_some_images(config), replace(config, batch_size=1)), 0
    began = time.perf_counter()
    while time.perf_counter() - began < BARE_SECONDS:
        side.draw(1)
        done += 1
    return done / (time.perf_counter() - began)


def _rate_on(config: LoaderConfig, cores: Sequence[int]) -> float:
    with _pinned(cores), Loader(replace(config, num_threads=len(cores))) as loader:
        return measure(_loader(loader))[WALL]


@contextmanager
def _pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keeps this thread, and those it starts meanwhile, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _start_times(config: LoaderConfig) -> dict[str, float]:
    return {
        f"step {step}, {num_workers} workers": statistics.median(
            _start_time(config, step, num_workers) for _ in range(speed.ROUNDS)
        )
        for num_workers in (0, 2)
        for step in (0, FAR_STEP)
    }


def _start_time(config: LoaderConfig, step: int, num_workers: int) -> float:
    began = time.perf_counter()
    with Loader(replace(config, num_workers=num_workers)) as loader:
        loader.batch(step)
        return time.perf_counter() - began
