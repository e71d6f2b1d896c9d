"""``load(path).encode(images)``: the same pixels give the same numbers, and files run no code."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small
from flax import nnx
from PIL import Image

import nepa_jax
from nepa_jax.base.errors import UserError
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.weights import save_weights
from nepa_jax.export.folder import export
from nepa_jax.loading import load
from nepa_jax.objectives.base import load_objective

OWN = "nepa_jax.model_config"
IMAGES = small.images(2, side=16)
TOY = """\
import pathlib

import jax.numpy as jnp
from flax import nnx

from nepa_jax.objectives.base import Aux, Description, Features

pathlib.Path(__file__).with_name("imported").touch()


class Toy(nnx.Module):
    def __init__(self):
        self.scale = nnx.Param(jnp.full((1,), 2.0))


def init_model(config, rngs):
    return Toy()


def loss(model, extra, batch, key):
    return jnp.float32(0), Aux({})


def encode(model, images, layer=-1):
    flat = images.reshape(len(images), 1, -1).astype(jnp.float32)
    return Features(flat * model.scale[...], None, (1, 1))


def describe(config):
    return Description(1, 1, 1.0)
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> str:
    """Weights of a small NEPA, as a run would leave them."""
    config = small.resolved("nepa", data__crop_pct="1.0")  # files are taken whole
    model = load_objective(config.objective.name).init_model(config, nnx.Rngs(0))
    folder = tmp_path_factory.mktemp("run")
    save_weights(str(folder), 0, model, Provenance.of(config, "none"))
    return str(folder)


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "nepa"
    export(workdir, "nepa", str(out))
    return out


@pytest.fixture(scope="module")
def loaded(workdir):
    return nepa_jax.load(workdir)


@pytest.fixture(scope="module")
def expected(loaded) -> np.ndarray:
    return loaded.encode(IMAGES).patches


def write_png(folder: Path) -> Path:
    file = folder / "0.png"
    file.write_bytes(small.png(IMAGES[0]))
    return file


FORMS = {
    "path": lambda folder: str(write_png(folder)),
    "pathlib": write_png,
    "pil": lambda folder: Image.fromarray(IMAGES[0]),
    "pils": lambda folder: [Image.fromarray(pixels) for pixels in IMAGES],
    "mixed": lambda folder: [write_png(folder), IMAGES[1]],
    "batch": lambda folder: IMAGES,
    "single": lambda folder: IMAGES[0],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_pixels_gives_the_same_numbers(loaded, expected, tmp_path, form):
    found = loaded.encode(FORMS[form](tmp_path))
    np.testing.assert_allclose(found.patches, expected[: len(found.patches)], rtol=1e-5, atol=1e-5)
    assert len(found.patches) == (2 if form in ("pils", "mixed", "batch") else 1)
    assert found.grid == (4, 4) and found.patches.dtype == np.float32


def test_all_layers_have_an_axis_in_front(loaded, expected):
    found = loaded.encode(IMAGES, layer=None).patches
    assert found.shape == (3, *expected.shape)
    np.testing.assert_allclose(found[-1], expected, rtol=1e-5, atol=1e-5)


def test_its_repr_is_one_short_line(loaded):
    assert len(repr(loaded)) < 100 and "nepa: 2 layers of width 32" in repr(loaded)


def test_an_exported_folder_gives_the_numbers_of_its_workdir(exported, expected):
    found = load(str(exported)).encode(IMAGES).patches
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.trial
@pytest.mark.parametrize(
    "images, words",
    [
        (IMAGES / np.float32(255), "* 255"),
        (IMAGES > 9, "bool of shape"),
        (IMAGES.astype(np.int64), "astype(np.uint8)"),
        (IMAGES[..., :1], "np.repeat"),
        (IMAGES[0, ..., 0], "a gray image"),
        (IMAGES.transpose(0, 3, 1, 2), "transpose(0, 2, 3, 1)"),
        (np.concatenate([IMAGES, IMAGES[..., :1]], -1), "alpha"),
        (IMAGES[:, :15], "patch side 4"),
        ([], "list is empty"),
        (IMAGES[:0], "it is empty"),
        ([IMAGES[0], IMAGES[0, :8]], "of 2 shapes"),
        ([[1, 2], [3]], "images"),
        ("nowhere.png", "nowhere.png"),
        ([__file__], "test_loading.py"),
    ],
)
def test_what_is_no_image_is_refused_by_name(loaded, images, words):
    with pytest.raises(UserError) as caught:
        loaded.encode(images)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.trial
@pytest.mark.parametrize("layer", [99, "x", True])
def test_a_layer_that_is_none_is_refused(loaded, layer):
    with pytest.raises(UserError, match=f"layer.*{layer}"):
        loaded.encode(IMAGES, layer)


@pytest.mark.trial
@pytest.mark.parametrize("path, words", [("", "empty"), ("gs://x", "gs://x"), ("no", "no")])
def test_a_path_that_is_none_is_refused(path, words):
    with pytest.raises(UserError, match=words):
        load(path)


@pytest.mark.trial
@pytest.mark.parametrize("asked", [{"ema": True}, {"step": 99}])
def test_weights_that_an_export_does_not_hold_are_refused(exported, asked):
    with pytest.raises(UserError, match=f"{next(iter(asked))}="):
        load(str(exported), **asked)


def test_a_users_objective_runs_only_where_the_user_names_it(tmp_path, monkeypatch):
    (tmp_path / "toy_of_loading.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    config = small.resolved("nepa")
    config.objective.name = "toy_of_loading"
    run, marker = str(tmp_path / "run"), tmp_path / "imported"
    model = load_objective("toy_of_loading").init_model(config, nnx.Rngs(0))
    save_weights(run, 0, model, Provenance.of(config, "none"))
    found = load(run, objective="toy_of_loading").encode(IMAGES).patches
    np.testing.assert_array_equal(found, IMAGES.reshape(2, 1, -1) * np.float32(2))
    marker.unlink()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import nepa_jax; nepa_jax.load({run!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode and "UserError" in ended.stderr and "toy_of_loading" in ended.stderr
    assert not marker.exists()


@pytest.mark.trial
@pytest.mark.parametrize("name", ["evil_weights", "", "..x", 5, None, "antigravity"])
def test_a_name_in_a_file_imports_nothing(exported, tmp_path, name):
    data = (exported / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    config = json.loads(header["__metadata__"][OWN])
    config["objective"]["name"] = name
    header["__metadata__"][OWN] = json.dumps(config)
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[end:])
    with pytest.raises(UserError, match=r"objective\.name"):
        load(str(path))
    assert "antigravity" not in sys.modules
