"""The same images through PyTorch: its DataLoader and torchvision's transforms, to measure against."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from nepa_jax.base.errors import UserError, in_short
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
        from torchvision import transforms as given

        config = self.config
        resize = given.InterpolationMode(config.interpolation)
        crop = given.RandomResizedCrop(config.image_size, config.crop_scale, interpolation=resize)
        return given.Compose([crop, given.RandomHorizontalFlip(), given.PILToTensor()])


def torch_loader(images: Sequence[bytes], config: LoaderConfig, stack: ExitStack) -> Side:
    """PyTorch's DataLoader with as many processes as there are cores."""
    try:
        import torch.utils.data
        import torchvision  # noqa: F401
    except ImportError as error:
        raise UserError("--against=torch needs PyTorch: pip install torch torchvision") from error
    except Exception as error:  # builds that do not go together
        raise UserError(
            f"--against=torch: torchvision does not work here ({in_short(error)}); install builds of "
            "torch and torchvision that go together"
        ) from error
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
