"""Accuracy by layer."""

from pictures import assert_picture

from nepa_jax.visualize import probes


def test_picture_is_written(tmp_path):
    layers = {"knn": [0.2, 0.5, 0.6], "logreg": [0.3, 0.7, 0.6]}
    level = {"knn": [0.4], "logreg": [0.1]}
    both = {"nepa": layers, "mae": layers, "untrained": layers, "raw_pixels": level}
    assert_picture(probes.draw(both, tmp_path / "probes.png"))
    assert_picture(probes.draw({"nepa": {"knn": [0.5]}}, tmp_path / "one.png"))
