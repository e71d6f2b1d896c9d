"""The patches' main components as colours."""

import numpy as np
import pytest
import small
from pictures import assert_picture
from skimage.color import rgb2lab

from nepa_jax.loading import load
from nepa_jax.visualize import pca, style


def made_patches(count=400, width=24, seed=0):
    """Three independent values of falling size along three directions, and their values."""
    draw = np.random.default_rng(seed)
    values = draw.uniform(-1, 1, (count, 3)) * [9.0, 3.0, 1.0]
    directions = np.linalg.qr(draw.normal(size=(width, 3)))[0]
    return values @ directions.T + draw.normal(size=width), values


def test_components_are_lightness_blue_to_yellow_and_green_to_red():
    patches, values = made_patches()
    lab = rgb2lab(pca.colors_of([patches])[0][None])[0]
    for channel, component in ((0, 0), (2, 1), (1, 2)):  # L, b, a
        others = np.corrcoef(lab[:, channel], values.T)[0, 1:]
        assert np.abs(others[component]) > 0.9
        assert np.abs(others).argmax() == component


def test_sign_and_scale_are_fixed():
    patches, _ = made_patches()
    found = pca.colors_of([patches])[0]
    np.testing.assert_array_equal(pca.colors_of([patches])[0], found)
    order = np.random.default_rng(1).permutation(len(patches))
    shuffled = pca.colors_of([patches[order]])[0].astype(int)
    assert np.abs(shuffled - found[order]).max() <= 1
    scaled = pca.colors_of([7 * patches + 3])[0].astype(int)
    assert np.abs(scaled - found).max() <= 1
    lightness = rgb2lab(found[None])[0, :, 0]
    low, high = np.percentile(lightness, (0.5, 99.5))
    assert low == pytest.approx(30, abs=3) and high == pytest.approx(92, abs=3)


def test_images_share_their_components():
    patches, _ = made_patches()
    together = pca.colors_of([patches])[0]
    parts = pca.colors_of([patches[:100], patches[100:]])
    np.testing.assert_array_equal(np.concatenate(parts), together)


@pytest.mark.parametrize("shape", [(2, 1), (1, 8), (3, 2), (6, 3)])
def test_fewer_patches_or_directions_than_colours_are_in_the_middle(shape):
    draw = np.random.default_rng(0)
    for patches in (draw.normal(size=shape), np.ones(shape)):
        (found,) = pca.colors_of([patches])
        assert found.shape == (shape[0], 3)
    middle = pca.colors_of([np.ones((2, 8))])[0]
    np.testing.assert_array_equal(middle[0], middle[1])


def test_pictures_of_images_of_several_shapes_are_written(tmp_path):
    loaded = load(small.write_run(tmp_path / "run", "nepa"))
    images = [small.images(1)[0], small.images(1, side=24)[0][:8]]
    made = pca.draw(loaded, images, range(3), ("a", "b"))
    assert_picture(style.save(made, tmp_path / "pca.png"))
    texts = [text.get_text() for text in made.axes[0].texts]
    assert texts == ["image", "layer 0", "layer 1", "layer 2"] * 2
