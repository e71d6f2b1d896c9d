"""The same images through PyTorch: its DataLoader and torchvision's transforms, to measure against."""

import importlib
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from nepa_jax.base.errors import UserError
from nepa_jax.bench.speed import Side
from nepa_jax.data.loader import LoaderConfig


@dataclass(frozen=True)
class TorchFiles:
    """A map-style PyTorch data set of image files: torchvision's transforms up to uint8."""

    files: Sequence[Path]
    config: LoaderConfig

    def __len__(self) -> int:
        return 1_000_000  # more than is ever drawn

    def __getitem__(self, index: int) -> Any:
        with open(self.files[index % len(self.files)], "rb") as file:
            return self._transform(Image.open(file).convert("RGB"))

    @cached_property
    def _transform(self) -> Callable[[Image.Image], Any]:
        given, config = _torchvision().transforms, self.config
        resize = given.InterpolationMode(config.interpolation)
        crop = given.RandomResizedCrop(config.image_size, config.crop_scale, interpolation=resize)
        return given.Compose([crop, given.RandomHorizontalFlip(), given.PILToTensor()])


def torch_loader(images: Sequence[bytes], config: LoaderConfig, stack: ExitStack) -> Side:
    """PyTorch's DataLoader with as many processes as there are cores."""
    try:
        import torch.utils.data
    except ImportError as error:
        raise UserError("--against=torch needs PyTorch: pip install torch torchvision") from error
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    files = [folder / f"{index}.jpg" for index in range(len(images))]
    for file, image in zip(files, images, strict=True):
        file.write_bytes(image)
    loader = torch.utils.data.DataLoader(
        TorchFiles(files, config),
        config.batch_size,
        num_workers=config.num_threads,
        multiprocessing_context="spawn",
    )
    ahead = loader.prefetch_factor * loader.num_workers
    return Side(iter(loader), config.batch_size, ahead)


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
