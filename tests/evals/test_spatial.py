"""Spatial metrics against the released code of iREPA (End2End-Diffusion/iREPA at 99ad4ac), and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from nepa_jax.base.errors import UserError
from nepa_jax.evals import spatial

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden2" / "irepa_metrics"
ARRAYS = load_file(GOLDEN.with_suffix(".safetensors"))
CASES = json.loads(GOLDEN.with_suffix(".json").read_text())["config"]

RELEASE = spatial.Distances()


def distances_of(hyper):
    return spatial.Distances(
        far=hyper["far_dist"], slope=hyper["dmax"], background_far=hyper["d_neg"],
        object_near=(hyper["d_pos_min"], hyper["d_pos"]),
    )  # fmt: skip


def scored(tokens, grid, masks=None, distances=RELEASE):
    weights = spatial.weights_at(tuple(grid), distances)
    return dict(
        zip(spatial.METRICS, np.asarray(spatial.metrics(tokens, masks, weights)), strict=True)
    )


@pytest.mark.parametrize("case", CASES)
def test_every_metric_of_every_image_is_the_released_codes(case):
    tokens, masks = ARRAYS[f"input.{case}.feats"], ARRAYS[f"input.{case}.masks"] != 0
    found = scored(tokens, CASES[case]["grid"], masks, distances_of(CASES[case]["hyper"]))
    for name in spatial.METRICS:
        np.testing.assert_allclose(
            found[name], ARRAYS[f"out.{case}.{name}"], atol=1e-6, err_msg=name
        )
    (means,) = spatial.means(np.stack(list(found.values()))[None])
    for name, mean in means.items():
        np.testing.assert_allclose(mean, ARRAYS[f"out.{case}.{name}_mean"], atol=1e-6)
    assert ("srss" in means) == bool(np.isfinite(ARRAYS[f"out.{case}.srss_mean"]))


def test_rmsc_is_what_the_mean_token_lacks_of_length_one():
    tokens = np.random.default_rng(0).normal(size=(3, 20, 7)).astype(np.float32)
    unit = tokens / np.linalg.norm(tokens, axis=2, keepdims=True)
    wanted = np.sqrt(1 - (unit.mean(1) ** 2).sum(1))
    np.testing.assert_allclose(scored(tokens, (4, 5))["rmsc"], wanted, atol=1e-6)


def test_equal_tokens_have_no_structure():
    found = scored(np.ones((1, 256, 3), np.float32), (16, 16))
    np.testing.assert_allclose([found[name][0] for name in ("lds", "cds", "rmsc")], 0, atol=1e-5)


def test_the_papers_distances_are_of_half_the_grid():
    assert spatial.PRESETS["paper"]((16, 16)) == spatial.Distances(near=(1, 7), far=8)


def test_shifted_tokens_begin_with_the_class_tokens():
    tokens, cls = np.arange(12.0).reshape(1, 2, 3, 2), np.full((1, 2, 2), -1.0)
    shifted = spatial.views(tokens, cls)["shifted"]
    np.testing.assert_array_equal(shifted[0, :, 0], cls[0])
    np.testing.assert_array_equal(shifted[0, :, 1:], tokens[0, :, :-1])
    assert list(spatial.views(tokens)) == ["in place"]


def test_larger_masks_are_those_of_the_patches_that_they_touch(tmp_path):
    masks = np.zeros((2, 4, 6), np.uint8)
    masks[1, 3, 5] = 255
    np.savez(tmp_path / "m.npz", masks=masks)
    found = spatial.read_masks(str(tmp_path / "m.npz"), 2, (2, 3))
    np.testing.assert_array_equal(found, [[False] * 6, [False] * 5 + [True]])


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [("masks", (2, 4, 4), "give [3, 2, 2]"), ("masks", (3, 3, 2), "give [3, 2, 2]"), ("other", (3, 2, 2), "`masks`")],
)  # fmt: skip
def test_other_masks_are_refused_in_one_line(tmp_path, name, shape, wanted):
    np.savez(tmp_path / "m.npz", **{name: np.zeros(shape)})
    with pytest.raises(UserError, match="--masks=") as caught:
        spatial.read_masks(str(tmp_path / "m.npz"), 3, (2, 2))
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "array", "cut short", "objects", "folder", "missing"])
def test_a_strangers_file_is_refused_in_one_line(tmp_path, kind):
    file = tmp_path / "m.npz"
    if kind == "text":
        file.write_text("masks")
    elif kind == "array":
        with file.open("wb") as opened:
            np.save(opened, np.zeros((3, 2, 2)))
    elif kind == "folder":
        file.mkdir()
    elif kind != "missing":
        masks = np.zeros((3, 2, 2)) if kind == "cut short" else np.array([None, "x"], object)
        np.savez(file, masks=masks)
        file.write_bytes(file.read_bytes()[: -40 if kind == "cut short" else None])
    with pytest.raises(UserError, match=r"give an \.npz of numbers") as caught:
        spatial.read_masks(str(file), 3, (2, 2))
    assert "\n" not in str(caught.value) and "pickle" not in str(caught.value)


def test_a_grid_without_distances_is_refused():
    with pytest.raises(UserError, match="too few"):
        spatial.weights_of((1, 2))
    with pytest.raises(UserError, match="--preset=release"):
        spatial.weights_of((3, 9), "paper")
