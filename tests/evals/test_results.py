"""What is reported: the number is never chosen on the test split."""

from nepa_jax.evals import results

LAYERS = [
    {"layer": 0, "top1": 0.9, "held_out": 0.5},
    {"layer": 1, "top1": 0.6, "held_out": 0.8},
    {"layer": 2, "top1": 0.7, "held_out": 0.6},
]


def without_held_out(rows):
    return [{key: value for key, value in row.items() if key != "held_out"} for row in rows]


def test_the_layer_is_chosen_on_held_out_images_and_the_best_on_test_stands_apart():
    found = results.outcome({}, LAYERS, LAYERS)
    assert found.number["layer"] == 1 and "held-out" in found.chosen
    assert found.best["layer"] == 0


def test_without_held_out_images_nothing_is_chosen():
    rows = without_held_out(LAYERS)
    found = results.outcome({}, rows, rows)
    assert found.number["layer"] == 2 and found.chosen == "the last layer"


def test_a_layer_that_was_asked_for_is_no_choice():
    found = results.outcome({}, LAYERS[:1], LAYERS[:1])
    assert found.number["layer"] == 0 and found.chosen == "the layer that was asked for"
