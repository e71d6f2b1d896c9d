"""Class masks beside images: what their stored values mean, and how they are decoded."""

from dataclasses import dataclass

import numpy as np

from nepa_jax.data.decode import DecodeError, identify

IGNORED = 255  # in every mask that is read: this pixel has no class
MAX_CLASSES = 255
INDEX_MODES = ("L", "P", "1", "I", "I;16", "I;16B", "I;16L", "I;16N")  # one number a pixel


@dataclass(frozen=True)
class MaskRule:
    """What the stored values of masks mean: classes from 0, 255 and `ignore` none.

    With `reduce_zero_label`, as ADE20K has it, 0 is none either, and k is class k - 1.
    """

    ignore: int = IGNORED
    reduce_zero_label: bool = False

    def table(self) -> np.ndarray:
        """The class of each stored value, uint8 [256]; IGNORED for none."""
        table = np.arange(256, dtype=np.uint8)
        if self.reduce_zero_label:
            table[:255] -= 1  # 0 becomes 255
        table[self.ignore] = IGNORED
        return table


def stored_values(data: bytes) -> np.ndarray:
    """The values of an encoded mask as they are stored, uint8 [h, w].

    Of an image with a palette they are the indices. Raises DecodeError if the data is no lossless
    image of one number from 0 to 255 a pixel.
    """
    image = identify(data)
    if image.format == "JPEG":
        raise DecodeError("its mask is a JPEG, which changes values: give a PNG")
    if image.mode not in INDEX_MODES:
        raise DecodeError(f"its mask has colours ({image.mode}): give one class index a pixel")
    try:
        values = np.asarray(image)
    except Exception as error:  # Pillow's parsers raise many kinds for damaged data
        raise DecodeError(f"its mask is damaged ({type(error).__name__}: {error})") from error
    if values.dtype != bool and not 0 <= values.min() <= values.max() <= 255:
        raise DecodeError(f"its mask has the value {values.max()}, and 255 is the largest")
    return values.astype(np.uint8)


def class_mask(
    data: bytes, rule: MaskRule, num_classes: int, size: tuple[int, int] | None = None
) -> np.ndarray:
    """An encoded mask as classes, uint8 [h, w]: 0 … num_classes - 1, or IGNORED.

    size: (height, width) of its image, px. Raises DecodeError if the mask has another size or
    other values, or as `stored_values` does.
    """
    values = stored_values(data)
    if size is not None and values.shape != size:
        found, wanted = (f"{width} x {height}" for height, width in (values.shape, size))
        raise DecodeError(f"its mask is {found} px, and the image {wanted}")
    classes = rule.table()[values]
    strays = (classes >= num_classes) & (classes != IGNORED)
    if strays.any():
        raise DecodeError(
            f"its mask has the value {values[strays][0]}, and there are {num_classes} classes"
        )
    return classes
