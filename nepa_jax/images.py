"""Images as users have them → the uint8 batch that a model takes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from nepa_jax.base.errors import UserError
from nepa_jax.data.decode import DecodeError, decoded, pixels_of
from nepa_jax.data.transforms import Transform
from nepa_jax.models.sizes import image_size

# A file, an opened image, pixels uint8 [H, W, C] or [B, H, W, C], or a list of the first three.
ImagesLike = str | os.PathLike | Image.Image | np.ndarray | Sequence

NEVER_RANDOM = np.random.default_rng(0)  # asked for by transforms; an evaluation draws nothing


def evaluation_transform(config: ConfigDict) -> Transform:
    """How images are cut for a model outside of training: the centre crop of its own size."""
    return Transform(
        image_size=image_size(config),
        augment="center_crop",
        crop_pct=config.data.crop_pct,
        interpolation=config.data.interpolation,
        flip=False,
    )


def cut(pixels: np.ndarray, transform: Transform) -> np.ndarray:
    """uint8 [h, w, C] of any size -> uint8 [H, W, C]."""
    out = np.empty((*transform.image_size, pixels.shape[-1]), np.uint8)
    transform(pixels, NEVER_RANDOM, out)
    return out


def as_batch(images: ImagesLike, config: ConfigDict) -> np.ndarray:
    """One batch of what a user gives, uint8 [B, H, W, C].

    Files and opened images are decoded and cut as in evaluation; pixels are taken as they are.

    Args:
        images: see :data:`ImagesLike`.
        config: of the model.

    Raises:
        UserError: anything else, with what to do about it.
    """
    if isinstance(images, list | tuple):
        if not images:
            raise UserError("images: the list is empty; give at least one image")
        return _stacked([_one(image, config) for image in images])
    if isinstance(images, str | os.PathLike | Image.Image):
        return _one(images, config)[None]
    pixels = _pixels(images, config)
    return pixels if pixels.ndim == 4 else pixels[None]


def _one(image: Any, config: ConfigDict) -> np.ndarray:
    """uint8 [H, W, C]."""
    if isinstance(image, str | os.PathLike):
        return read_image(image, config)
    if isinstance(image, Image.Image):
        try:
            pixels = pixels_of(image, config.model.in_channels)
            return cut(pixels, evaluation_transform(config))
        except DecodeError as error:
            raise UserError(f"image {image!r}: {error}; open it again, or leave it out") from None
    pixels = _pixels(image, config)
    if pixels.ndim == 4:
        raise UserError(
            f"images: a list with batches of shape {pixels.shape}; give np.concatenate(images)"
        )
    return pixels


def read_image(path: str | os.PathLike, config: ConfigDict) -> np.ndarray:
    """A file as a model takes it, uint8 [H, W, C].

    Raises:
        UserError: it cannot be read or decoded.
    """
    try:
        with decoded(Path(path).read_bytes(), config.model.in_channels) as pixels:
            return cut(pixels, evaluation_transform(config))
    except OSError as error:
        remedy = "list its files" if Path(path).is_dir() else "give a file"
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


def _pixels(images: Any, config: ConfigDict) -> np.ndarray:
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
        if remedy := check(pixels, config.model):
            raise _wrong(f"{pixels.dtype} of shape {pixels.shape}", remedy)
    return pixels


def _wrong_axes(pixels: np.ndarray, model: ConfigDict) -> str | None:
    """What to do about axes that are too few, too many or in another order; None if they fit."""
    channels, shape = model.in_channels, pixels.shape
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


def _wrong_values(pixels: np.ndarray, model: ConfigDict) -> str | None:
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


def _wrong_sides(pixels: np.ndarray, model: ConfigDict) -> str | None:
    patch, sides = model.patch_size, pixels.shape[-3:-1]
    if not any(side % patch for side in sides):
        return None
    near = " x ".join(str(max(round(side / patch), 1) * patch) for side in sides)
    return (
        f"sides must be multiples of the patch side {patch}, such as {near}; or give files or PIL "
        "images, which are cut here"
    )


def _wrong(found: str, remedy: str) -> UserError:
    return UserError(f"images: {found}; {remedy}")
