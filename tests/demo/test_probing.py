"""What the demo says of features: by layer, chosen on held-out training images and told of the test ones."""

from dataclasses import dataclass

import numpy as np

from nepa_jax.demo.probing import best_layers, by_layer, probe, probe_all
from nepa_jax.evals.frozen import Frozen


@dataclass(frozen=True)
class Encoded:
    """Two layers of features of images of two classes: noise, and what tells the classes apart."""

    seeing: bool = True

    def train(self) -> Frozen:
        return self._split(80)

    def test(self) -> Frozen:
        return self._split(30)

    def untrained(self) -> "Encoded":
        return Encoded(seeing=False)

    def _split(self, count: int) -> Frozen:
        rng, labels = np.random.default_rng(count), np.arange(count, dtype=np.int32) % 2
        noise, more = rng.standard_normal((2, count, 3)).astype(np.float32)
        told = np.repeat(labels[:, None] - 0.5, 3, axis=1).astype(np.float32)
        layers = [noise, told if self.seeing else more]
        return Frozen({"mean": layers}, (0, 1), labels, labels, (), (1, 1), "")


def test_a_layer_that_tells_the_classes_apart_is_found():
    found = {"mine": probe(Encoded())}
    for blind, seeing in by_layer(found)["mine"].values():
        assert blind < 0.8 and seeing == 1.0
    assert best_layers(found)["mine"] == {"knn": 1.0, "logreg": 1.0, "layer": 1}


def test_the_layer_is_not_chosen_on_the_test_split():
    number = probe(Encoded(seeing=False))["logreg"].number
    assert "held_out" in number
    assert number["held_out"] == max(
        row["held_out"] for row in probe(Encoded(seeing=False))["logreg"].by_layer
    )


def test_every_encoder_stands_beside_its_untrained_self_and_the_pixels(monkeypatch):
    monkeypatch.setattr("nepa_jax.demo.probing.Pixels", lambda subject: Encoded(seeing=False))
    best = best_layers(probe_all({"nepa": Encoded(), "mae": Encoded()}))
    assert set(best) == {
        "raw_pixels",
        "untrained_nepa",
        "nepa",
        "untrained_mae",
        "mae",
        "untrained",
    }
    assert best["nepa"]["logreg"] == 1.0
    assert all(best[name]["logreg"] < 0.8 for name in ("raw_pixels", "untrained_mae", "untrained"))
