"""What the demo says of features: by layer, chosen on held-out training images and told of the test ones."""

import numpy as np
import pytest

from nepa_jax.demo.probing import best_layers, by_layer, probe, raw_pixels
from nepa_jax.evals.frozen import Frozen


@pytest.fixture
def splits():
    """Images of two classes; what tells them apart stands in the first pixel."""
    rng, found = np.random.default_rng(0), {}
    for split, count in (("train", 80), ("test", 30)):
        labels = np.arange(count, dtype=np.int32) % 2
        images = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
        images[:, 0, 0] = 255 * labels[:, None]
        found[split] = images, labels
    return found


def test_a_layer_that_tells_the_classes_apart_is_found(splits):
    def encoded(split: str) -> Frozen:
        images, labels = splits[split]
        noise = np.random.default_rng(len(images)).standard_normal((len(images), 3))
        told = np.repeat(images[:, 0, 0, :1] / 255.0, 3, axis=1) - 0.5
        layers = [noise.astype(np.float32), told.astype(np.float32)]
        return Frozen({"mean": layers}, (0, 1), labels, labels, (), (1, 1), "")

    found = {"mine": probe(encoded("train"), encoded("test"))}
    for blind, seeing in by_layer(found)["mine"].values():
        assert blind < 0.8 and seeing == 1.0
    assert best_layers(found)["mine"] == {"knn": 1.0, "logreg": 1.0, "layer": 1}


def test_raw_pixels_are_one_layer(splits):
    pixels = raw_pixels(splits["test"])
    (vectors,) = pixels.features["pixels"]
    assert vectors.shape == (30, 16) and vectors.dtype == np.float32
    assert vectors.min() >= 0 and vectors.max() == 1


def test_the_layer_is_not_chosen_on_the_test_split(splits):
    found = {"mine": probe(*(raw_pixels(splits[split]) for split in ("train", "test")))}
    number = found["mine"]["logreg"].number
    assert "held_out" in number and number in found["mine"]["logreg"].by_layer
