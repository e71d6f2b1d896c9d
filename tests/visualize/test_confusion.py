import csv

import numpy as np

from nepa_jax.run.validation import write_predictions
from nepa_jax.visualize import confusion


def written(folder, classes):
    labels = np.array([0, 0, 1, 1, 1])
    rows = {
        "index": np.arange(5),
        "label": labels,
        "prediction": np.array([0, 1, 1, 1, 0]),
        "loss": np.linspace(0.1, 0.5, 5),
    }
    write_predictions(folder, rows, classes)


def test_shares_are_of_the_true_class_and_classes_without_images_have_none(tmp_path):
    written(tmp_path, ["cat", "dog, small", "eel"])
    found = confusion.shares(tmp_path / "predictions.csv", ["cat", "dog, small", "eel"])
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [1 / 3, 2 / 3, 0], [np.nan] * 3])
    files = confusion.draw_of(tmp_path)
    assert files == ["confusion.png", "per_class.csv", "predictions.csv"]
    with (tmp_path / "per_class.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert rows["dog, small"]["top1"] == "0.6667" and rows["eel"]["top1"] == ""


def test_more_classes_than_can_be_told_apart_have_no_picture(tmp_path):
    written(tmp_path, [f"class {k}" for k in range(confusion.MOST + 1)])
    assert confusion.draw_of(tmp_path) == ["per_class.csv", "predictions.csv"]
    assert confusion.draw_of(tmp_path / "nothing") == []
