"""Images as users have them → the uint8 batch that a model takes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nepa_jax.base.errors import UserError
from nepa_jax.data.decode import DecodeError, decoded, pixels_of
from nepa_jax.data.settings import LoaderConfig
from nepa_jax.data.transforms import transform

# A file, an opened image, pixels uint8 [H, W, C] or [B, H, W, C], or a list of the first three.
ImagesLike = str | os.PathLike | Image.Image | np.ndarray | Sequence

NEVER_RANDOM = np.random.default_rng(0)  # asked for by transforms; an evaluation draws nothing


class Wanted(NamedTuple):
    """What a model takes: images cut as `data` says, or pixels whose sides `patch_size` divides."""

    data: LoaderConfig
    patch_size: int


def cut(pixels: np.ndarray, data: LoaderConfig) -> np.ndarray:
    """uint8 [h, w, C] of any size -> uint8 [H, W, C]; `data` must leave nothing to chance."""
    out = np.empty((*data.image_size, pixels.shape[-1]), np.uint8)
    transform(data, pixels, NEVER_RANDOM, out)
    return out


def cut_out(encoded: bytes, data: LoaderConfig) -> np.ndarray:
    """An encoded image -> uint8 [H, W, C]. Raises DecodeError as `decode` does."""
    with decoded(encoded, data.channels) as pixels:
        return cut(pixels, data)


def as_batch(images: ImagesLike, data: LoaderConfig, patch_size: int) -> np.ndarray:
    """One batch of what a user gives, uint8 [B, H, W, C].

    Files and opened images are decoded and cut; pixels are taken as they are.

    Args:
        images: see :data:`ImagesLike`.
        data: how images are cut, with nothing left to chance.
        patch_size: of the model.

    Raises:
        UserError: anything else, with what to do about it.
    """
    wanted = Wanted(data, patch_size)
    if isinstance(images, list | tuple):
        if not images:
            raise UserError("images: the list is empty; give at least one image")
        return _stacked([_one(image, wanted) for image in images])
    if isinstance(images, str | os.PathLike | Image.Image):
        return _one(images, wanted)[None]
    pixels = _pixels(images, wanted)
    return pixels if pixels.ndim == 4 else pixels[None]


def _one(image: Any, wanted: Wanted) -> np.ndarray:
    """uint8 [H, W, C]."""
    if isinstance(image, str | os.PathLike):
        return _read(Path(image), wanted.data)
    if isinstance(image, Image.Image):
        try:
            return cut(pixels_of(image, wanted.data.channels), wanted.data)
        except DecodeError as error:
            raise UserError(f"image {image!r}: {error}; open it again, or leave it out") from None
    pixels = _pixels(image, wanted)
    if pixels.ndim == 4:
        raise UserError(
            f"images: a list with batches of shape {pixels.shape}; give np.concatenate(images)"
        )
    return pixels


def _read(path: Path, data: LoaderConfig) -> np.ndarray:
    """A file as a model takes it, uint8 [H, W, C].

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        return cut_out(path.read_bytes(), data)
    except OSError as error:
        remedy = "list its files" if path.is_dir() else "give a file"
        raise UserError(f"image {path}: cannot be read ({error.strerror}); {remedy}") from None
    except DecodeError as error:
        raise UserError(f"image {path}: {error}; get it again, or leave it out") from None


def _stacked(images: Sequence[np.ndarray]) -> np.ndarray:
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        raise UserError(
            f"images: of {len(shapes)} shapes, such as {shapes[0]} and {shapes[1]}; cut them to one "
            "size, or give files or PIL images, which are cut here"
        )
    return np.stack(images)


def _pixels(images: Any, wanted: Wanted) -> np.ndarray:
    """uint8 [H, W, C] or [B, H, W, C] for the model.

    Raises:
        UserError: it is none.
    """
    try:
        pixels = np.asarray(images)
    except Exception as error:  # of whatever library it comes from, or ragged
        raise _wrong(type(images).__name__, "give uint8 pixels [B, H, W, C]") from error
    checks = (_wrong_axes, _wrong_values, _wrong_sides)
    for check in checks:
        if remedy := check(pixels, wanted):
            raise _wrong(f"{pixels.dtype} of shape {pixels.shape}", remedy)
    return pixels


def _wrong_axes(pixels: np.ndarray, wanted: Wanted) -> str | None:
    """What to do about axes that are too few, too many or in another order; None if they fit."""
    channels, shape = wanted.data.channels, pixels.shape
    if pixels.ndim == 2:
        return f"a gray image: np.repeat(images[..., None], {channels}, axis=-1)"
    if pixels.ndim not in (3, 4):
        return f"give uint8 pixels [B, H, W, {channels}]"
    if shape[-1] == channels:
        return None
    if shape[-3] == channels:
        order = "0, 2, 3, 1" if pixels.ndim == 4 else "1, 2, 0"
        return f"channels come last: images.transpose({order})"
    if shape[-1] == channels + 1:
        return f"the model knows no alpha channel: images[..., :{channels}]"
    if shape[-1] == 1:
        return f"the model takes {channels} channels: np.repeat(images, {channels}, axis=-1)"
    if pixels.ndim == 3:
        return f"gray images: np.repeat(images[..., None], {channels}, axis=-1)"
    return f"the last axis must be the {channels} channels of the model"


def _wrong_values(pixels: np.ndarray, wanted: Wanted) -> str | None:
    if not pixels.size:
        return "it is empty; give at least one image"
    if pixels.dtype == np.uint8:
        return None
    if pixels.dtype == bool:
        return "images.astype(np.uint8) * 255"
    if not np.issubdtype(pixels.dtype, np.integer) and not np.issubdtype(pixels.dtype, np.floating):
        return "give uint8 pixels"
    low, high = pixels.min(), pixels.max()
    if not 0 <= low <= high <= 255:
        return f"values from {low:.4g} to {high:.4g} are no pixels; give uint8, before normalising"
    if np.issubdtype(pixels.dtype, np.floating) and high <= 1:
        return "of values in [0, 1]: (images * 255).round().astype(np.uint8)"
    whole = np.issubdtype(pixels.dtype, np.integer)
    return f"images{'' if whole else '.round()'}.astype(np.uint8)"


def _wrong_sides(pixels: np.ndarray, wanted: Wanted) -> str | None:
    patch, sides = wanted.patch_size, pixels.shape[-3:-1]
    if not any(side % patch for side in sides):
        return None
    near = " x ".join(str(max(round(side / patch), 1) * patch) for side in sides)
    return (
        f"sides must be multiples of the patch side {patch}, such as {near}; or give files or PIL "
        "images, which are cut here"
    )


def _wrong(found: str, remedy: str) -> UserError:
    return UserError(f"images: {found}; {remedy}")
