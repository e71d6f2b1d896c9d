"""Images in rows and columns."""

import numpy as np

from nepa_jax.visualize import sheet


def block(height, width, value):
    return np.full((height, width, 3), value, np.uint8)


def test_every_image_stands_whole_in_the_middle_of_its_cell_on_white():
    images = [[block(8, 4, 10), block(4, 20, 20)], [block(6, 12, 30), None, block(2, 2, 40)]]
    made = sheet.Sheet(images, ["a", "b"], captions=[["x", "y\nz"], [""]])
    canvas, count = made.canvas(), 0
    for row, cells in enumerate(images):
        for column, image in enumerate(cells):
            if image is not None:
                top, left = made.corner(row, column)
                there = canvas[top : top + image.shape[0], left : left + image.shape[1]]
                np.testing.assert_array_equal(there, image)
                count += image.size
    assert (canvas < 255).sum() == count
    assert (made.heights, made.widths) == ([8, 6], [12, 20, 2])
    assert made.corner(0, 0) == (0, 4) and made.corner(0, 1) == (2, 12 + made.gap)
    room = round(2 * sheet.LINE * made.pixels_per_inch)  # for two lines
    assert made.corner(1, 0) == (8 + made.gap + room, 0)
    assert canvas.shape == (8 + 6 + made.gap + 2 * room, 34 + 2 * made.gap, 3)


def test_labels_captions_and_frames_stand_in_the_figure():
    frame = sheet.Frame(1, 0, (1, 2), 4)
    texts = [["", "below"], ["", ""]]
    cells = [[block(8, 12, 0)] * 2] * 2
    made = sheet.Sheet(cells, ["one", "two"], ["left", "right"], texts, [frame])
    figure, axes = sheet.draw(made, "heading")
    figure.canvas.draw()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["left", "right"]
    assert "below" in [text.get_text() for text in axes.texts]
    (rectangle,) = axes.patches
    top, left = made.corner(1, 0)
    assert rectangle.get_xy() == (left + 2 * 4 - 0.5, top + 4 - 0.5)
    heights = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert heights[0].y0 > heights[1].y1
