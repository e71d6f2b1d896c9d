"""Training curves."""

import json

import numpy as np
import pytest
from pictures import assert_picture

from nepa_jax.base.errors import UserError
from nepa_jax.visualize import curves


def row(step, extra):
    common = {"train/loss": 1 / step, "train/grad_norm": 0.5, "train/lr": 1e-3}
    return json.dumps({"step": step, **common, **extra})


@pytest.fixture
def runs(tmp_path):
    extras = {
        "nepa": {"train/cos_copy": 0.2, "train/target_std": 0.9},
        "mae": {"train/loss_mean_patch": 0.6},
    }
    for name, extra in extras.items():
        lines = [row(step, extra) for step in range(1, 30)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return {name: tmp_path / f"{name}.jsonl" for name in extras}


def test_one_run_and_two_runs_are_drawn(runs, tmp_path):
    assert_picture(curves.draw(runs, tmp_path / "deep" / "both.png"))
    assert_picture(curves.draw({"nepa": runs["nepa"]}, tmp_path / "one.png"))


def test_reads_what_was_logged(runs):
    loss = curves.read_curves(runs["nepa"])["train/loss"]
    np.testing.assert_array_equal(loss.steps, np.arange(1, 30))
    np.testing.assert_allclose(loss.values, 1 / np.arange(1, 30))


def test_cut_line_and_repeated_steps(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [row(1, {}), row(2, {"x": 5}), row(1, {"x": 7}), '{"step": 2, "eval/knn": 0.5}']
    path.write_text("\n".join([*lines, '{"step": 3, "train/lo']))
    read = curves.read_curves(path)
    np.testing.assert_array_equal(read["train/loss"].steps, [1, 2])
    np.testing.assert_array_equal(read["x"].values, [7, 5])


def test_nothing_to_draw_is_the_users_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("empty.jsonl", "absent.jsonl"):
        with pytest.raises(UserError, match=name):
            curves.read_curves(tmp_path / name)
