"""How fast images get from disk into batches: beside the bare decoding, and beside PyTorch."""

import importlib
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from nepa_jax.data.decode import decode, decode_pixels
from nepa_jax.data.draws import example_rng
from nepa_jax.data.loader import Loader, LoaderConfig
from nepa_jax.data.resize import INTERPOLATIONS
from nepa_jax.data.sources import open_dataset
from nepa_jax.data.transforms import Transform, random_resized_crop_box
from nepa_jax.errors import UserError

ROUNDS = 3
IMAGES = 256  # per measurement, at least; more than two batches
FAR_STEP = 1_000_000

Draw = Callable[[int], int]  # makes at least so many images; tells how many


@dataclass(frozen=True)
class Speed:
    """One measurement: images made, and the wall and CPU seconds that it took."""

    images: int
    wall_s: float
    cpu_s: float


def bench_data(config: LoaderConfig, against_torch: bool = False) -> dict[str, Any]:
    """Measures the input pipeline on the data set of `config`, and prints a table.

    All sides take turns; each figure is the median of ROUNDS. images/s are of wall time with all
    the cores this process may use, images per CPU second of all its threads and processes.
    Returns the figures: `rates` by side, `ratios`, `start_s`, `worker_mib` and `cores`.

    Raises UserError as Loader does, or if PyTorch is asked for and missing.
    """
    cores = sorted(os.sched_getaffinity(0))
    config = replace(config, augment="random_crop", num_threads=len(cores), num_workers=0)
    memory = _worker_mib(config)
    images = _some_images(config)
    rates = _bare_rates(images, config)
    with ExitStack() as stack:
        rates |= _take_turns(_sides(config, images if against_torch else [], stack))
    scaling = _scaling(config, cores)
    result = {
        "cores": len(cores),
        "load_average": os.getloadavg()[0],
        "rates": rates,
        "ratios": {**_ratios(rates, config.decode), **scaling},
        "start_s": _start_times(config),
        "worker_mib": memory,
    }
    _print(result)
    return result


def _some_images(config: LoaderConfig) -> list[bytes]:
    records = open_dataset(config.path, config.split)
    return [record.image for record in records.read(range(min(IMAGES, len(records))))]


def _sides(config: LoaderConfig, for_torch: Sequence[bytes], stack: ExitStack) -> dict[str, Draw]:
    with_workers = replace(config, num_workers=config.num_threads, num_threads=1)
    sides = {
        "loader": _loader(stack.enter_context(Loader(config))),
        "workers": _loader(stack.enter_context(Loader(with_workers))),
    }
    if for_torch:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = TorchFiles(_write_files(for_torch, folder), config)
        sides["torch"] = _torch(files, num_workers=config.num_threads)
    return sides


# The bare loops: bytes in memory to a crop in memory, one after the other, in one thread.


def _bare_rates(images: Sequence[bytes], config: LoaderConfig) -> dict[str, dict[str, float]]:
    """All modes take turns at every image: whatever else the machine does, it does to all."""
    modes = {
        "pillow": partial(_pillow, config),
        "exact": _mode("exact", config),
        "fast": _mode("fast", config),
    }
    speeds: dict[str, list[Speed]] = {name: [] for name in modes}
    for _ in range(ROUNDS):
        for index, image in enumerate(images):
            for name, make in modes.items():
                wall, cpu = time.perf_counter(), time.thread_time()
                make(image, index)
                speeds[name].append(Speed(1, time.perf_counter() - wall, time.thread_time() - cpu))
    return {name: _median_by_image(found, len(images)) for name, found in speeds.items()}


def _median_by_image(speeds: Sequence[Speed], num_images: int) -> dict[str, float]:
    """Of each image the median over the rounds, and the rate at which all are made."""
    walls = np.reshape([speed.wall_s for speed in speeds], (-1, num_images))
    cpus = np.reshape([speed.cpu_s for speed in speeds], (-1, num_images))
    return {
        "images_per_s": num_images / float(np.median(walls, axis=0).sum()),
        "images_per_cpu_s": num_images / float(np.median(cpus, axis=0).sum()),
    }


def _pillow(config: LoaderConfig, data: bytes, index: int) -> np.ndarray:
    """What torchvision's loader and RandomResizedCrop do."""
    image, rng = decode(data, config.channels), example_rng("bench", 0, index)
    left, top, width, height = random_resized_crop_box(*image.size, rng, config.crop_scale)
    image = image.crop((left, top, left + width, top + height))
    size = config.image_size[::-1]
    return np.asarray(image.resize(size, INTERPOLATIONS[config.interpolation]))


def _mode(mode: str, config: LoaderConfig) -> Callable[[bytes, int], None]:
    transform = Transform(
        config.image_size,
        crop_scale=config.crop_scale,
        interpolation=config.interpolation,
        flip=False,
        decode=mode,
    )
    out = np.empty((*config.image_size, config.channels), np.uint8)

    def make(data: bytes, index: int) -> None:
        transform(decode_pixels(data, config.channels), example_rng("bench", 0, index), out)

    return make


# The loaders.


def _loader(loader: Loader) -> Draw:
    return _batches(map(loader.batch, count()), loader.config.batch_size)


def _batches(batches: Iterator[Any], batch_size: int) -> Draw:
    def draw(number: int) -> int:
        num_batches = -(-number // batch_size)
        for _ in islice(batches, num_batches):
            pass
        return num_batches * batch_size

    return draw


def _write_files(images: Sequence[bytes], folder: Path) -> list[str]:
    files = [folder / f"{index}.jpg" for index in range(len(images))]
    for file, image in zip(files, images, strict=True):
        file.write_bytes(image)
    return [str(file) for file in files]


@dataclass(frozen=True)
class TorchFiles:
    """A map-style PyTorch data set of image files: torchvision's transforms up to uint8."""

    files: list[str]
    config: LoaderConfig

    def __len__(self) -> int:
        return 1_000_000  # more than is ever drawn

    def __getitem__(self, index: int) -> Any:
        with open(self.files[index % len(self.files)], "rb") as file:
            return self._transform(Image.open(file).convert("RGB"))

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Any]:
        transforms = _torchvision().transforms
        config, mode = self.config, _torchvision().transforms.InterpolationMode
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(
                    config.image_size,
                    config.crop_scale,
                    interpolation=mode(config.interpolation),
                ),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )


def _torch(files: TorchFiles, num_workers: int) -> Draw:
    try:
        import torch.utils.data
    except ImportError as error:
        raise UserError("--against=torch needs PyTorch: pip install torch torchvision") from error
    batch_size = files.config.batch_size
    loader = torch.utils.data.DataLoader(
        files, batch_size, num_workers=num_workers, multiprocessing_context="spawn"
    )
    return _batches(iter(loader), batch_size)


def _torchvision() -> Any:
    """Imports torchvision, also where its build names operators of a GPU that torch lacks."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    while True:
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            name = re.search(r"torchvision::(\w+) does not exist", str(error))
            if name is None:
                raise
            library.define(f"{name[1]}(Tensor x) -> Tensor")
            for module in [key for key in sys.modules if key.split(".")[0] == "torchvision"]:
                del sys.modules[module]


# Measuring.


def _take_turns(sides: dict[str, Draw]) -> dict[str, dict[str, float]]:
    """The median speed of each side, over rounds in which all take their turn."""
    speeds: dict[str, list[Speed]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, draw in sides.items():
            _settle()  # what the others read ahead after their turns is not this one's work
            draw(2 * IMAGES)  # uses up what this side has read ahead
            speeds[name].append(_measure(draw))
    return {
        name: {
            "images_per_s": statistics.median(s.images / s.wall_s for s in found),
            "images_per_cpu_s": statistics.median(s.images / s.cpu_s for s in found),
        }
        for name, found in speeds.items()
    }


def _settle() -> None:
    """Waits until this process and its workers have nothing to do."""
    used = -1.0
    while _cpu_seconds() - used > 0.02:
        used = _cpu_seconds()
        time.sleep(0.2)


def _measure(draw: Draw) -> Speed:
    wall, cpu = time.perf_counter(), _cpu_seconds()
    images = draw(IMAGES)
    return Speed(images, time.perf_counter() - wall, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """CPU time so far of this process and of the worker processes it has now."""
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{child.pid}/stat") for child in multiprocessing.active_children()]
    fields = [file.read_text().rsplit(")", 1)[1].split() for file in stats]
    return time.process_time() + sum((int(f[11]) + int(f[12])) / ticks for f in fields)


def _worker_mib(config: LoaderConfig) -> dict[str, float]:
    """Memory of the largest of two workers: resident, and without what it shares with others."""
    with Loader(replace(config, num_workers=2)) as loader:
        _loader(loader)(2 * IMAGES)
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


def _ratios(rates: dict[str, dict[str, float]], mode: str) -> dict[str, float]:
    per_cpu = {name: rate["images_per_cpu_s"] for name, rate in rates.items()}
    ratios = {
        "exact / pillow": per_cpu["exact"] / per_cpu["pillow"],
        "fast / pillow": per_cpu["fast"] / per_cpu["pillow"],
        "loader / bare": per_cpu["loader"] / per_cpu[mode],
        "workers / bare": per_cpu["workers"] / per_cpu[mode],
    }
    if "torch" in rates:
        wall = {name: rate["images_per_s"] for name, rate in rates.items()}
        ratios["loader / torch, per CPU"] = per_cpu["loader"] / per_cpu["torch"]
        ratios["loader / torch, wall"] = wall["loader"] / wall["torch"]
    return ratios


def _scaling(config: LoaderConfig, cores: Sequence[int]) -> dict[str, float]:
    """The rate of the loader on two cores over that on one, in turns."""
    if len(cores) < 2:
        return {}
    gains = [_rate_on(config, cores[:2]) / _rate_on(config, cores[:1]) for _ in range(ROUNDS)]
    return {"two cores / one": statistics.median(gains)}


def _rate_on(config: LoaderConfig, cores: Sequence[int]) -> float:
    with _pinned(cores), Loader(replace(config, num_threads=len(cores))) as loader:
        draw = _loader(loader)
        draw(IMAGES)
        speed = _measure(draw)
    return speed.images / speed.wall_s


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
        f"step {step}, {num_workers} workers": _start_time(config, step, num_workers)
        for num_workers in (0, 1)
        for step in (0, FAR_STEP)
    }


def _start_time(config: LoaderConfig, step: int, num_workers: int) -> float:
    began = time.perf_counter()
    with Loader(replace(config, num_workers=num_workers)) as loader:
        loader.batch(step)
        return time.perf_counter() - began


def _print(result: dict[str, Any]) -> None:
    table = Table("", "images/s", "images per CPU s", title=f"{result['cores']} cores")
    for name, rate in result["rates"].items():
        table.add_row(name, f"{rate['images_per_s']:.0f}", f"{rate['images_per_cpu_s']:.0f}")
    table.add_section()
    for name, ratio in result["ratios"].items():
        table.add_row(name, "", f"{ratio:.2f}")
    table.add_section()
    for name, seconds in result["start_s"].items():
        table.add_row(f"first batch, {name}", f"{seconds:.2f} s", "")
    for name, size in result["worker_mib"].items():
        table.add_row(f"memory per worker, {name}", f"{size:.0f} MiB", "")
    Console().print(table)
