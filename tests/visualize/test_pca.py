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


def colors(patches):
    return pca.layer_colors(patches[None])[0]


def test_components_are_lightness_blue_to_yellow_and_green_to_red():
    patches, values = made_patches()
    lab = rgb2lab(colors(patches)[None])[0]
    for channel, component in ((0, 0), (2, 1), (1, 2)):  # L, b, a
        found = np.abs(np.corrcoef(lab[:, channel], values.T)[0, 1:])
        assert found[component] > 0.9 and found.argmax() == component


def test_sign_and_scale_are_fixed():
    patches, _ = made_patches()
    found = colors(patches)
    np.testing.assert_array_equal(colors(patches), found)
    order = np.random.default_rng(1).permutation(len(patches))
    assert np.abs(colors(patches[order]).astype(int) - found[order]).max() <= 1
    assert np.abs(colors(7 * patches + 3).astype(int) - found).max() <= 1
    lightness = rgb2lab(found[None])[0, :, 0]
    low, high = np.percentile(lightness, (0.5, 99.5))
    assert low == pytest.approx(30, abs=3) and high == pytest.approx(92, abs=3)


def test_values_are_those_of_the_covariance():
    patches, _ = made_patches()
    found = pca.values_of(patches)
    wanted = np.linalg.svd(patches - patches.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(found, axis=0), wanted.S[:3], rtol=1e-6)
    np.testing.assert_allclose(np.abs(found), np.abs(wanted.U * wanted.S)[:, :3], atol=1e-6)


def test_a_layer_that_only_turns_the_one_before_round_keeps_its_colours():
    patches, _ = made_patches()
    first, second, third = pca.layer_colors(np.stack([patches, -patches, 2 * patches]))
    assert np.abs(second.astype(int) - first).max() <= 1
    assert np.abs(third.astype(int) - first).max() <= 1


@pytest.mark.parametrize("shape", [(2, 1), (1, 8), (3, 2), (6, 3)])
def test_fewer_patches_or_directions_than_colours_are_in_the_middle(shape):
    draw = np.random.default_rng(0)
    found = colors(draw.normal(size=shape))
    assert found.shape == (shape[0], 3)
    middle = colors(np.ones(shape))
    assert (middle == middle[0]).all()
    lab = rgb2lab(middle[None, :1])[0, 0]
    np.testing.assert_allclose(lab, [61, 0, 0], atol=1)


def test_pictures_of_images_of_several_shapes_are_written(tmp_path):
    loaded = load(small.write_run(tmp_path / "run", "nepa"))
    images = [small.images(1)[0], small.images(1, side=24)[0][:8]]
    made = pca.draw(loaded, images, range(3), ("a", "b"))
    assert_picture(style.save(made, tmp_path / "pca.png"))
    texts = [text.get_text() for text in made.axes[0].texts]
    assert texts == ["image", "layer 0", "layer 1", "layer 2"] * 2


def test_many_layers_go_on_in_the_next_row(tmp_path, monkeypatch):
    monkeypatch.setattr(pca, "ACROSS", 3)
    loaded = load(small.write_run(tmp_path / "run", "nepa"))
    made = pca.draw(loaded, list(small.images(2)), range(3), ("a", "b"))
    labels = [label.get_text() for label in made.axes[0].get_yticklabels()]
    assert labels == ["a", "", "b", ""]
    assert [text.get_text() for text in made.axes[0].texts][:4] == [
        "image",
        "layer 0",
        "layer 1",
        "layer 2",
    ]
