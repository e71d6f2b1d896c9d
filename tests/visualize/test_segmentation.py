"""Predictions beside labels: every class has its own colour, and what has none is told."""

import numpy as np
from PIL import Image

from nepa_jax.visualize import segmentation


def test_colours_of_classes_differ():
    colors = segmentation.palette(150)
    assert colors.min() >= 0 and colors.max() <= 1
    far = np.linalg.norm(colors[:, None] - colors, axis=-1) + np.eye(150)
    assert far.min() > 0.01
    assert np.linalg.norm(np.diff(colors, axis=0), axis=-1).min() > 0.3  # of neighbours in number
    assert np.linalg.norm(colors - segmentation.UNKNOWN, axis=-1).min() > 0.2


def test_pixels_without_a_class_are_gray():
    colors = segmentation.palette(3)
    found = segmentation.coloured(np.array([[0, 2], [255, 1]], np.uint8), colors)
    np.testing.assert_array_equal(found[0], colors[[0, 2]])
    np.testing.assert_array_equal(found[1], [segmentation.UNKNOWN, colors[1]])


def test_the_legend_names_what_is_seen(tmp_path):
    arrays = {"classes": np.array([f"class {k}" for k in range(40)])}
    for row in range(2):
        mask = np.full((30, 40), 255, np.uint8)
        mask[:20] = np.arange(20 * 40).reshape(20, 40) % (3 + 29 * row)
        arrays |= {
            f"image{row}": np.full((16, 21, 3), 90, np.uint8), f"mask{row}": mask,
            f"prediction{row}": np.zeros((30, 40), np.uint8),
        }  # fmt: skip
    np.savez(tmp_path / "examples.npz", **arrays)
    names = [p.get_label() for p in segmentation._handles(arrays, 1, segmentation.palette(40))]
    assert names == ["class 0", "class 1", "class 2", "no class"]
    names = [p.get_label() for p in segmentation._handles(arrays, 2, segmentation.palette(40))]
    assert len(names) == segmentation.MOST + 2 and names[-2] == "and 8 more"
    path = segmentation.draw(tmp_path / "examples.npz", tmp_path / "segmentation.png")
    with Image.open(path) as picture:
        assert picture.width > picture.height > 300
