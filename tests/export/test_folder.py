"""Whole folders: out, in again, loaded in one line; and one clear error for everything wrong."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.checkpoint import arrays
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.weights import load_weights, save_weights
from nepa_jax.config import to_json
from nepa_jax.export import folder as written
from nepa_jax.export.folder import encoder_alone, export
from nepa_jax.export.importing import import_checkpoint
from nepa_jax.export.printing import print_names
from nepa_jax.formats import convert, files
from nepa_jax.formats.sources import Choices
from nepa_jax.loading import load

WAYS = [
    ("nepa", "nepa", False), ("nepa", "nepa_paper", False), ("nepa", "nepa_class", False),
    ("mae", "mae", False), ("mae", "mae", True), ("vit_mae", "mae", False),
    ("vit", "vit_cls", False), ("timm", "vit_mean", False),
    ("timm_eva", "nepa_affine", True), ("big_vision", "mae", True),
    ("timm_eva", "nepa_odd", True), ("timm", "mae_odd", True), ("vit", "vit_narrow", False),
]  # fmt: skip


def trained(workdir, alone):
    found = load_weights(workdir, ema=False)
    return encoder_alone(found.model, found.provenance.config)[0] if alone else found.model


@pytest.mark.parametrize(("name", "variant", "alone"), WAYS)
def test_out_and_in_again_is_bit_exact(kit, workdir, tmp_path, name, variant, alone):
    report = export(workdir(variant), name, str(tmp_path / "out"), encoder_only=alone)
    assert report.names.complete and "README.md" in report.files
    found = import_checkpoint(str(tmp_path / "out"), name, str(tmp_path / "in"))
    assert found.names.complete
    kit.assert_same(
        trained(workdir(variant), alone), load_weights(str(tmp_path / "in"), ema=False).model
    )


@pytest.mark.parametrize(("layer_bytes", "large_bytes"), [(1, 2**30), (2**30, 1)])
def test_however_the_checkpoint_lies_on_disk(
    kit, workdir, tmp_path, monkeypatch, layer_bytes, large_bytes
):
    """Layer by layer, converted in threads; or leaf by leaf, one at a time."""
    monkeypatch.setattr(arrays, "MIN_PIECE_BYTES", layer_bytes)
    monkeypatch.setattr(convert, "LARGE_BYTES", large_bytes)
    config = kit.make_config("nepa")
    origin = Provenance.of(config, "abc" * 9)
    save_weights(str(tmp_path / "run"), 7, kit.make_model(config), origin)
    for source, out in ((str(tmp_path / "run"), "here"), (workdir("nepa"), "there")):
        export(source, "nepa", str(tmp_path / out))
    here, there = (tmp_path / out / files.SAFETENSORS for out in ("here", "there"))
    assert here.read_bytes() == there.read_bytes()


# Without our header, as other people's files are: config.json or the arrays' shapes must do.
@pytest.mark.parametrize(
    ("name", "variant", "alone"), [w for w in WAYS if w[0] not in ("mae", "big_vision")]
)
def test_in_by_their_config_alone(kit, workdir, tmp_path, name, variant, alone):
    out = tmp_path / "out"
    export(workdir(variant), name, str(out), encoder_only=alone)
    forget_origin(out)
    found = import_checkpoint(str(out), name, str(tmp_path / "in"))
    kit.assert_same(
        trained(workdir(variant), alone), load_weights(str(tmp_path / "in"), ema=False).model
    )
    assert tuple(found.config.model.pixel_mean) == tuple(kit.make_config(variant).model.pixel_mean)


def forget_origin(out):
    (out / "provenance.json").unlink()
    if (out / files.SAFETENSORS).is_file():
        stored = files.read_safetensors(out / files.SAFETENSORS)
        arrays = {name: np.asarray(array) for name, array in stored.arrays.items()}
        shapes = {name: array.shape for name, array in arrays.items()}
        files.write_safetensors(out, shapes, arrays.items(), {"format": "pt"}, 10**9)


@pytest.mark.parametrize("name", ["mae", "big_vision"])
def test_sizes_are_read_from_shapes_where_there_is_no_config(workdir, tmp_path, name):
    out = tmp_path / "out"
    export(workdir("mae"), name, str(out), encoder_only=True)
    forget_origin(out)
    config = import_checkpoint(str(out), name, str(tmp_path / "in")).config
    assert (config.model.embed_dim, config.model.depth, config.model.patch_size) == (16, 2, 2)
    assert config.model.image_size == (12, 12) and config.model.posemb == "sincos"


def test_parts_and_their_index(kit, workdir, tmp_path, monkeypatch):
    whole = export(workdir("nepa"), "nepa", str(tmp_path / "whole"))
    monkeypatch.setattr(written, "MAX_PART_BYTES", 8000)
    report = export(workdir("nepa"), "nepa", str(tmp_path / "parts"))
    parts = [name for name in report.files if name.startswith("model-")]
    assert len(parts) > 2 and files.INDEX in report.files and whole.names == report.names
    index = json.loads((tmp_path / "parts" / files.INDEX).read_text())
    assert set(index["weight_map"].values()) == set(parts)
    for part in parts:
        with safe_open(tmp_path / "parts" / part, "numpy") as opened:
            assert {k for k, v in index["weight_map"].items() if v == part} == set(opened.keys())
    kit.assert_same(load(str(tmp_path / "whole")).model, load(str(tmp_path / "parts")).model)
    (tmp_path / "parts" / parts[0]).unlink()
    with pytest.raises(UserError, match="not there; get all parts"):
        load(str(tmp_path / "parts"))


def test_the_header_and_the_card_say_where_weights_come_from(workdir, tmp_path):
    export(workdir("nepa"), "nepa", str(tmp_path / "out"))
    with safe_open(tmp_path / "out" / files.SAFETENSORS, "numpy") as opened:
        header = opened.metadata()
    assert header["nepa_jax.step"] == "7" and header["nepa_jax.weights"] == "raw"
    assert header["nepa_jax.config"] == to_json(
        load_weights(workdir("nepa"), ema=False).provenance.config
    )
    assert "nepa_jax" in json.loads(header["nepa_jax.versions"])
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("Step: 7", "train/loss: 0.25", "AutoModel.from_pretrained", "1e-4"):
        assert text in card


@pytest.mark.parametrize(("name", "variant"), [("nepa", "nepa"), ("vit", "mae")])
def test_one_line_gives_features(workdir, tmp_path, name, variant):
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    export(workdir(variant), name, str(tmp_path / "out"), encoder_only=name == "vit")
    here, there = load(workdir(variant)).encode(images), load(str(tmp_path / "out")).encode(images)
    assert here.patches.shape == (2, 36, 16) and here.cls.shape == (2, 16) and here.grid == (6, 6)
    assert isinstance(here.patches, np.ndarray)
    np.testing.assert_array_equal(here.patches, there.patches)


def test_an_earlier_export_is_replaced_and_other_files_are_kept(workdir, tmp_path, monkeypatch):
    with monkeypatch.context() as small:
        small.setattr(written, "MAX_PART_BYTES", 8000)
        export(workdir("nepa"), "nepa", str(tmp_path / "out"))
    assert files.INDEX not in export(workdir("nepa"), "nepa", str(tmp_path / "out")).files
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        export(workdir("nepa"), "nepa", str(tmp_path / "mine"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_names_are_printed(workdir, tmp_path, capsys):
    print_names(export(workdir("nepa"), "nepa", str(tmp_path / "out")).names)
    assert "41 mapped, 0 missing, 0 unexpected" in capsys.readouterr().out


# Mistakes


@pytest.fixture
def folder(workdir, tmp_path):
    export(workdir("nepa"), "nepa", str(tmp_path / "out"))
    return tmp_path / "out"


def rewrite(folder, change):
    stored = files.read_safetensors(folder / files.SAFETENSORS)
    arrays = change({name: np.asarray(array) for name, array in stored.arrays.items()})
    shapes = {name: array.shape for name, array in arrays.items()}
    files.write_safetensors(folder, shapes, arrays.items(), stored.metadata, 10**9)


def refused(path, match, name="nepa", **options):
    with pytest.raises(UserError, match=match) as caught:
        import_checkpoint(str(path), name, str(Path(path).parent / "in"), **options)
    assert "\n" not in str(caught.value)
    assert not (Path(path).parent / "in").exists()


CLASS_TOKEN = "vit_nepa.embeddings.cls_token"


def test_missing_unexpected_and_misshapen_names_are_listed(folder):
    rewrite(
        folder,
        lambda arrays: (
            {k: v for k, v in arrays.items() if k != CLASS_TOKEN}
            | {"more": np.zeros(2, np.float32)}
        ),
    )
    refused(folder, f"missing {CLASS_TOKEN}; unexpected more")
    found = import_checkpoint(
        str(folder), "nepa", str(folder.parent / "allowed"), allow_partial=True
    )
    assert found.names.missing == [CLASS_TOKEN] and found.names.unexpected == ["more"]
    rewrite(folder, lambda arrays: arrays | {CLASS_TOKEN: np.zeros((1, 1, 8), np.float32)})
    refused(folder, r"cls_token has shape \(1, 1, 8\), expected \(1, 1, 16\)", allow_partial=True)


def test_a_truncated_file(folder):
    data = (folder / files.SAFETENSORS).read_bytes()
    for length in (len(data) - 100, 200, 3):
        (folder / files.SAFETENSORS).write_bytes(data[:length])
        refused(folder, "is cut off|is damaged")


def test_a_config_of_another_size(folder):
    wider = Choices(overrides={"model.embed_dim": "32"})
    refused(folder, r"has shape .* expected", choices=wider)
    forget_origin(folder)
    theirs = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(theirs | {"num_hidden_layers": 3}))
    refused(folder, "missing vit_nepa.encoder.layer.2")
    (folder / "config.json").unlink()
    refused(folder, "no config.json beside it")


def test_an_unknown_format(folder, workdir):
    refused(folder, "there is no such format; choose from nepa, mae", name="keras")
    with pytest.raises(UserError, match="there is no such format"):
        export(workdir("nepa"), "keras", str(folder.parent / "other"))


def test_other_mistakes(folder, workdir, tmp_path):
    refused(tmp_path / "nowhere", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no model.safetensors")
    with pytest.raises(UserError, match="holds checkpoints already"):
        import_checkpoint(str(folder), "nepa", workdir("mae"))
    with pytest.raises(UserError, match="leave out --ema"):
        export(workdir("mae"), "mae", str(tmp_path / "ema"), ema=True)


class Malicious:
    def __reduce__(self):
        return print, ("the pickle ran",)


def test_a_pickle_with_code_is_refused(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"model": Malicious()}, tmp_path / "bad.pth")
    refused(tmp_path / "bad.pth", "could run code", name="mae")
    (tmp_path / "worse.pth").write_bytes(pickle.dumps(Malicious()))
    refused(tmp_path / "worse.pth", "could run code|damaged", name="mae")
    (tmp_path / "no.pth").write_bytes(b"nothing")
    refused(tmp_path / "no.pth", "could run code|damaged", name="mae")
    assert "the pickle ran" not in capsys.readouterr().out


def test_an_official_pth_comes_in(kit, workdir, tmp_path):
    torch = pytest.importorskip("torch")
    import argparse

    export(workdir("mae"), "mae", str(tmp_path / "out"))
    stored = files.read_safetensors(tmp_path / "out" / files.SAFETENSORS)
    state = {name: torch.from_numpy(np.asarray(array)) for name, array in stored.arrays.items()}
    torch.save(
        {"model": state, "args": argparse.Namespace(lr=1.0), "epoch": 3}, tmp_path / "mae.pth"
    )
    heads = {"model.num_heads": "2", "objective.decoder_num_heads": "2"}
    found = import_checkpoint(
        str(tmp_path / "mae.pth"), "mae", str(tmp_path / "in"), choices=Choices(overrides=heads)
    )
    assert found.names.complete
    kit.assert_same(
        trained(workdir("mae"), False), load_weights(str(tmp_path / "in"), ema=False).model
    )


@pytest.mark.parametrize("max_part_bytes", [10**9, 20_000], ids=["one file", "parts"])
def test_an_exported_mae_becomes_a_pth_by_the_script_in_its_folder(
    kit, workdir, tmp_path, monkeypatch, max_part_bytes
):
    pytest.importorskip("torch")
    out, pth = tmp_path / "out", tmp_path / "mae.pth"
    monkeypatch.setattr(written, "MAX_PART_BYTES", max_part_bytes)
    export(workdir("mae"), "mae", str(out))
    subprocess.run([sys.executable, str(out / "to_pth.py"), str(pth)], check=True)
    import_checkpoint(str(pth), "mae", str(tmp_path / "in"))
    kit.assert_same(
        trained(workdir("mae"), False), load_weights(str(tmp_path / "in"), ema=False).model
    )


def test_a_damaged_checkpoint_is_never_exported(kit, tmp_path, capsys):
    config = kit.make_config("nepa")
    for step in (3, 7):
        model = kit.make_model(config, seed=step)
        save_weights(str(tmp_path / "run"), step, model, Provenance.of(config, "abc"))
    flip_a_bit(tmp_path / "run" / "checkpoints" / "7", model)
    out = tmp_path / "out"
    report = export(str(tmp_path / "run"), "nepa", str(out))
    assert report.provenance["nepa_jax.step"] == "3"
    kit.assert_same(load(str(out)).model, kit.make_model(config, seed=3))
    said = capsys.readouterr().out
    assert "is not what was saved; using that of step 3, 4 steps before" in said
    with pytest.raises(UserError, match=r"no checkpoint is sound .*/7: model/.* is not what was"):
        export(str(tmp_path / "run"), "nepa", str(out), step=7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
    kit.assert_same(load(str(out)).model, kit.make_model(config, seed=3))


def flip_a_bit(checkpoint, model):
    """In the middle of the largest weight."""
    weights = max(named_leaves(model).values(), key=np.size).tobytes()
    middle = len(weights) // 2
    damaged = weights[:middle] + bytes([weights[middle] ^ 8]) + weights[middle + 1 :]
    (holder,) = (p for p in checkpoint.rglob("d/*") if weights in p.read_bytes())
    holder.write_bytes(holder.read_bytes().replace(weights, damaged))


def test_one_checkpoint_of_a_run_is_exported(kit, tmp_path):
    config = kit.make_config("nepa")
    for step in (3, 7):
        provenance = Provenance.of(config, "abc")
        save_weights(str(tmp_path), step, kit.make_model(config, seed=step), provenance)
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 2, "train/loss": 0.75}\n{"step": 6, "train/loss": 0.5}\n'
    )
    checkpoint = tmp_path / "checkpoints" / "3"
    for path, step in ((tmp_path, 3), (checkpoint, None), (checkpoint, 3)):
        out = tmp_path / "out"
        report = export(str(path), "nepa", str(out), step=step)
        assert report.provenance["nepa_jax.step"] == "3"
        kit.assert_same(load(str(out)).model, kit.make_model(config, seed=3))
        kit.assert_same(load(str(path), step=step).model, kit.make_model(config, seed=3))
    assert "0.75" in (out / "README.md").read_text()  # what was logged at that step
    with pytest.raises(UserError, match=r"no checkpoint of step 4; choose from 3, 7"):
        export(str(tmp_path), "nepa", str(out), step=4)


def test_folded_layer_scale_is_the_same_function(workdir, tmp_path):
    export(workdir("nepa_class"), "nepa", str(tmp_path), fold_layer_scale=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 12, 12, 3), np.uint8)
    ours, folded = (load(str(path)) for path in (workdir("nepa_class"), tmp_path))
    assert folded.config.model.layer_scale_init is None
    np.testing.assert_allclose(
        folded.encode(images).patches, ours.encode(images).patches, atol=1e-5
    )
    with pytest.raises(UserError, match="--fold-layer-scale: this model has no LayerScale"):
        export(workdir("vit_mean"), "mae", str(tmp_path / "mae"), fold_layer_scale=True)
