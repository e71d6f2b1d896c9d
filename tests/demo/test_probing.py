"""What the demo says of features: by layer, chosen on one split and told of another."""

import numpy as np
import pytest

from nepa_jax.demo import probing
from nepa_jax.demo.probing import best_layers, probe


@pytest.fixture
def splits():
    """Images of two classes; what tells them apart stands in the first pixel."""
    rng, found = np.random.default_rng(0), {}
    for split, count in (("train", 40), ("validation", 20), ("test", 30)):
        labels = np.arange(count, dtype=np.int32) % 2
        images = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
        images[:, 0, 0] = 255 * labels[:, None]
        found[split] = images, labels
    return found


def test_a_layer_that_tells_the_classes_apart_is_found(splits):
    def encoder(images: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(len(images)).standard_normal((len(images), 3))
        told = np.repeat(images[:, 0, 0, :1] / 255.0, 3, axis=1)
        return np.stack([noise, told]).astype(np.float32)

    scores = probe(encoder, splits)
    for split in ("validation", "test"):
        for name in ("knn", "logreg"):
            blind, seeing = scores[split][name]
            assert blind < 0.8 and seeing == 1.0
    assert best_layers({"mine": scores})["mine"] == {"knn": 1.0, "logreg": 1.0, "layer": 1}


def test_raw_pixels_are_one_layer(splits):
    pixels = probing.raw_pixels(splits["test"][0])
    assert pixels.shape == (1, 30, 16) and pixels.dtype == np.float32
    assert pixels.min() >= 0 and pixels.max() == 1


def test_the_layer_is_not_chosen_on_the_test_split():
    scores = {
        "validation": {"knn": [0.1, 0.2], "logreg": [0.6, 0.5]},
        "test": {"knn": [0.3, 0.4], "logreg": [0.2, 0.9]},
    }
    assert best_layers({"mine": scores})["mine"] == {"knn": 0.3, "logreg": 0.2, "layer": 0}
