"""Exported models in the libraries they are for: every hidden state to 1e-4 in float32."""

from dataclasses import replace
from types import SimpleNamespace

import golden
import jax
import numpy as np
import pytest
from flax import nnx

from nepa_jax.base.errors import UserError
from nepa_jax.export import parity
from nepa_jax.export.folder import export
from nepa_jax.export.printing import print_parity
from nepa_jax.loading import load
from nepa_jax.models.masking import random_masking
from nepa_jax.models.posemb import resample
from nepa_jax.objectives import mae, nepa

TRANSFORMERS = [
    ("nepa", "nepa", False), ("nepa", "nepa_affine", False), ("nepa", "nepa_paper", False),
    ("nepa", "nepa_class", False), ("nepa", "nepa_geglu", False),
    ("vit_mae", "mae", False), ("vit_mae", "mae", True), ("vit_mae", "mae_other", False),
    ("vit", "mae", True), ("vit", "vit_cls", False),
]  # fmt: skip
TIMM = [
    ("timm", "mae", True), ("timm", "vit_cls", False), ("timm", "vit_mean", False),
    ("mae", "mae", False), ("mae", "mae_eps", False), ("timm", "vit_no_bias", False),
    ("timm_eva", "nepa_no_bias", True), ("timm_eva", "nepa_odd", True),
    ("timm", "mae_odd", True), ("mae", "mae_odd", False), ("big_vision", "mae_odd", True),
    ("timm_eva", "nepa", True), ("timm_eva", "nepa_affine", True), ("big_vision", "mae", True),
]  # fmt: skip


def compare(workdir, out, name, variant, alone):
    export(workdir(variant), name, str(out), encoder_only=alone)
    report = parity.check(str(out), workdir(variant))
    assert {"embedding", "layer 1", "layer 2"} <= report.differences.keys()
    assert report.largest < 2e-5, report.differences
    report.require_equal()
    return report


@pytest.mark.parametrize(("name", "variant", "alone"), TRANSFORMERS)
def test_in_transformers(torch, workdir, tmp_path, name, variant, alone):
    pytest.importorskip("transformers")
    compare(workdir, tmp_path / "out", name, variant, alone)


@pytest.mark.parametrize(("name", "variant", "alone"), TIMM)
def test_in_timm(torch, workdir, tmp_path, name, variant, alone):
    pytest.importorskip("timm")
    compare(workdir, tmp_path / "out", name, variant, alone)


def test_a_resized_export_fits_its_library(torch, workdir, tmp_path):
    pytest.importorskip("timm")
    export(workdir("mae"), "timm", str(tmp_path / "out"), encoder_only=True, image_size=20)
    parity.check(str(tmp_path / "out")).require_equal()


def test_a_difference_fails(capsys):
    report = parity.ParityReport("transformers", {"embedding": 1e-6, "layer 1": 2e-4})
    print_parity(report)
    assert "NOT equal" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"layer 1 differs by 2\.00e-04"):
        report.require_equal()
    assert not parity.ParityReport("transformers", {"norm": float("nan")}).equal


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("no torch", name="torch"), "torch is not installed"),
        (ModuleNotFoundError("Could not import module 'ViTModel'"), "timm does not work here"),
    ],
)
def test_a_library_that_is_not_there_or_does_not_work_is_told(
    workdir, tmp_path, monkeypatch, error, told
):
    def fails(name):
        raise error

    export(workdir("mae"), "timm", str(tmp_path / "out"), encoder_only=True)
    monkeypatch.setattr(parity, "importlib", SimpleNamespace(import_module=fails))
    with pytest.raises(UserError, match=told):
        parity.check(str(tmp_path / "out"))


@pytest.mark.parametrize("variant", ["mae", "mae_other"])
def test_mae_predicts_the_same_pixels(torch, workdir, tmp_path, variant):
    """The decoder too: mask token, its positions, the order in which patches are put back."""
    transformers = pytest.importorskip("transformers")
    export(workdir(variant), "vit_mae", str(tmp_path / "out"))
    loaded, rng = load(workdir(variant)), np.random.default_rng(0)
    images, noise = rng.integers(0, 256, (2, 12, 12, 3), np.uint8), rng.random((2, 36), np.float32)
    vit, masking = loaded.model.vit, random_masking(noise, loaded.model.mask_ratio)
    wanted = mae.reconstruct(loaded.model, vit.patches(images), vit.grid(images), masking)
    model = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "out").eval()
    pixels = parity.normalised(images, loaded.config.model)
    with torch.no_grad():
        output = model(torch.from_numpy(pixels), noise=torch.from_numpy(noise))
    np.testing.assert_array_equal(output.mask.numpy(), masking.mask)
    np.testing.assert_allclose(output.logits.numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("variant", ["nepa", "nepa_geglu"])
def test_nepas_loss_is_the_same(torch, workdir, tmp_path, variant):
    """Under the causal mask, where our model leaves the last patch out, and without it."""
    transformers = pytest.importorskip("transformers")
    export(workdir(variant), "nepa", str(tmp_path / "out"))
    loaded = load(workdir(variant))
    model = nnx.clone(loaded.model)
    model.vit.config = replace(model.vit.config, rope_rescale=1.0)
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    ours, _ = nepa.loss(model, None, {"image": images, "row": np.arange(2)}, jax.random.key(0))
    theirs = transformers.AutoModelForPreTraining.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    ).eval()
    pixels = torch.from_numpy(parity.normalised(images, loaded.config.model))
    np.testing.assert_allclose(ours, theirs(pixels).loss.item(), atol=1e-5)


# Resizing rules


@pytest.mark.parametrize("new", [(9, 9), (4, 3), (6, 7)])
def test_bicubic_is_that_of_torch(new):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(0).normal(size=(36, 5)).astype(np.float32)
    plane = torch.from_numpy(table.reshape(1, 6, 6, 5)).permute(0, 3, 1, 2)
    for rule, antialias in (("bicubic", False), ("bicubic_antialias", True)):
        wanted = torch.nn.functional.interpolate(plane, new, mode="bicubic", antialias=antialias)
        wanted = wanted.permute(0, 2, 3, 1).reshape(-1, 5).numpy()
        np.testing.assert_allclose(
            resample(table, (6, 6), new, rule), wanted, atol=1e-5, err_msg=rule
        )


def test_linear_is_that_of_scipy():
    zoom = pytest.importorskip("scipy.ndimage").zoom
    table = np.random.default_rng(0).normal(size=(36, 5)).astype(np.float32)
    wanted = zoom(table.reshape(6, 6, 5), (9 / 6, 9 / 6, 1), order=1).reshape(-1, 5)
    np.testing.assert_allclose(resample(table, (6, 6), (9, 9), "linear"), wanted, atol=1e-5)


# The shipped model against the official code


@pytest.fixture
def torch_model(torch):
    pytest.importorskip("transformers")
    from nepa_jax.export.torch_model import configuration_nepa, modeling_nepa

    def build(case):
        config = configuration_nepa.ViTNepaConfig(**case.meta["config"])
        classifier = "num_labels" in case.meta["config"]
        kind = "ViTNepaForImageClassification" if classifier else "ViTNepaForPreTraining"
        return getattr(modeling_nepa, kind)(config)

    return build


@pytest.mark.parametrize("name", ["nepa_gelu", "nepa_swiglu_affine", "nepa_cls_bidir"])
def test_the_shipped_model_equals_the_official_one(torch, torch_model, name):
    case = golden.load_case(name)
    model = torch_model(case).eval()
    model.load_state_dict(
        {key: torch.from_numpy(array) for key, array in case.group("param.").items()}
    )
    with torch.no_grad():
        output = model(
            torch.from_numpy(case.arrays["input.pixel_values"]), output_hidden_states=True
        )
    for layer, state in enumerate(output.hidden_states):
        np.testing.assert_allclose(
            state.numpy(), case.arrays[f"out.hidden_states.{layer}"], atol=1e-4
        )
    if name == "nepa_cls_bidir":
        np.testing.assert_allclose(output.logits.numpy(), case.arrays["out.logits"], atol=1e-4)
    else:
        np.testing.assert_allclose(
            output.last_hidden_state.numpy(), case.arrays["out.last_hidden_state"], atol=1e-4
        )
        np.testing.assert_allclose(output.loss.numpy(), case.arrays["out.loss"], atol=1e-5)


@pytest.mark.parametrize(
    ("variant", "auto"),
    [
        ("nepa", "AutoModel"),
        ("nepa", "AutoModelForPreTraining"),
        ("nepa_class", "AutoModelForImageClassification"),
        ("nepa_class", "AutoModel"),
    ],
)
def test_a_folder_loads_by_itself_with_every_name(torch, workdir, tmp_path, variant, auto):
    transformers = pytest.importorskip("transformers")
    export(workdir(variant), "nepa", str(tmp_path / "out"))
    model, info = getattr(transformers, auto).from_pretrained(
        tmp_path / "out", trust_remote_code=True, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[problem], problem
    images = torch.rand(2, 3, 12, 12)
    model.train()(images)
    if variant == "nepa_class" and auto != "AutoModel":
        output = model(images, labels=torch.tensor([0, 4]))
        assert output.logits.shape == (2, 5) and output.loss.requires_grad
