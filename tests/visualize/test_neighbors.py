"""Nearest neighbours."""

import numpy as np
from pictures import assert_picture

from nepa_jax.visualize import neighbors, style
from nepa_jax.visualize.images import Shown


def test_neighbours_are_those_of_the_largest_cosine_without_the_query_itself():
    angles = np.radians([0, 10, 40, 90, 180])
    bank = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [9], [2], [5], [3]]
    found = neighbors.nearest(bank[[0, 3]] * 2, bank, [0, None], k=3)
    np.testing.assert_array_equal(found.rows, [[1, 2, 3], [3, 2, 1]])
    np.testing.assert_allclose(
        found.cosines, np.cos(np.radians([[10, 40, 90], [0, 50, 80]])), atol=1e-12
    )


def test_equal_ones_keep_their_order_and_zeros_are_no_trouble():
    bank = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    found = neighbors.nearest(np.array([[1.0, 0.0]]), bank, [None], k=3)
    np.testing.assert_array_equal(found.rows, [[1, 2, 0]])
    np.testing.assert_allclose(found.cosines, [[1, 1, 0]])


def test_picture_names_cosines_and_the_classes_that_are_known(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    query = Shown("folder/a-name-that-is-long.png", pixels[0], "cat")
    others = [Shown("b.png", pixels[1], "dog"), Shown("c.png", pixels[2])]
    made = neighbors.draw([query], [others], np.array([[0.987, 0.5]]), "nearest")
    assert_picture(style.save(made, tmp_path / "near.png"))
    texts = [text.get_text() for text in made.axes[0].texts]
    assert texts == ["cat", "0.987\ndog", "0.500"]
    assert made.axes[0].get_yticklabels()[0].get_text() == "a-name-…is-long"
