"""What a fine-tuning run takes of an encoder, and what it says of it."""

import jax
import numpy as np
import pytest
import small
from ml_collections import ConfigDict

import nepa_jax
from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.config import resolve
from nepa_jax.export.folder import export
from nepa_jax.formats.constants import class_and_sincos
from nepa_jax.mesh import make_mesh
from nepa_jax.models.posemb import resample
from nepa_jax.objectives import supervised
from nepa_jax.run.begin import first_weights
from nepa_jax.step import abstract_state


@pytest.fixture(scope="module", params=["nepa", "mae"])
def method(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, str]:
    return {name: small.write_run(tmp_path_factory.mktemp(name), name) for name in ("nepa", "mae")}


def resolved(method: str, source: str, **changes: str) -> ConfigDict:
    return resolve(small.finetuning(method, "unused", source, **changes), 40, "cpu")


def begun(config: ConfigDict, source: str):
    target = abstract_state(config, supervised, make_mesh(config)).model
    return first_weights(source, target, config, supervised)


def tokens(vit) -> np.ndarray:
    """After the last block, before any norm."""
    return np.asarray(vit.hidden_states(small.images(2), causal=False)[-1])


def test_the_encoder_computes_what_it_did(encoders, method, capsys):
    """Seen without a mask; MAE's sine-cosine table is a trained one from here on."""
    config = resolved(method, encoders[method])
    ours = begun(config, encoders[method])
    theirs = nepa_jax.load(encoders[method])
    np.testing.assert_allclose(tokens(ours.vit), tokens(theirs.model.vit), atol=2e-5)
    told = capsys.readouterr().out
    assert "starting from the weights of step 5" in told and "step 0, fresh optimizer" in told
    assert "begins from the seed: fc_norm, head" in told
    assert ("left out: decoder, vit/norm" in told) == (method == "mae")
    assert ("objective.causal: true -> false" in told) == (method == "nepa")


def test_an_export_begins_as_its_workdir_does(encoders, method, tmp_path):
    fold = method == "mae"  # whose layout has no LayerScale
    export(encoders[method], method, str(tmp_path / "export"), fold_layer_scale=fold)
    scale = "none" if fold else "1.0"
    config = resolved(method, encoders[method], model__layer_scale_init=scale)
    of_run, of_export = (
        named_leaves(begun(config, path)) for path in (encoders[method], str(tmp_path / "export"))
    )
    for name, leaf in of_run.items():
        np.testing.assert_allclose(of_export[name], leaf, atol=1e-6, err_msg=name)


def test_positions_are_resized_and_it_is_said(encoders, capsys):
    config = resolved("mae", encoders["mae"], model__image_size="24")
    table = np.asarray(begun(config, encoders["mae"]).vit.pos_embed[...])
    old = class_and_sincos((4, 4), 32)
    np.testing.assert_allclose(table[1:], resample(old[1:], (4, 4), (6, 6), "bicubic"), atol=1e-6)
    np.testing.assert_array_equal(table[0], old[0])
    assert "position table resized from 4 x 4 to 6 x 6 patches (bicubic)" in capsys.readouterr().out


def test_layer_scale_is_folded_where_the_model_has_none(encoders, capsys):
    config = resolved("nepa", encoders["nepa"], model__layer_scale_init="none")
    ours = begun(config, encoders["nepa"])
    theirs = nepa_jax.load(encoders["nepa"])
    np.testing.assert_allclose(tokens(ours.vit), tokens(theirs.model.vit), atol=2e-5)
    assert "LayerScale is folded" in capsys.readouterr().out


def test_another_number_of_classes_takes_all_but_the_last_map(encoders, tmp_path, capsys):
    config = resolved("nepa", encoders["nepa"])
    classifier = jax.tree.map(lambda leaf: np.asarray(leaf) + 1.0, begun(config, encoders["nepa"]))
    small.save_weights(str(tmp_path), 3, classifier, small.Provenance.of(config, "none"))
    again = named_leaves(begun(config, str(tmp_path)))
    for name, leaf in named_leaves(classifier).items():
        np.testing.assert_array_equal(again[name], leaf, err_msg=name)
    capsys.readouterr()
    other = resolved("nepa", str(tmp_path))
    other.objective.num_classes = 7
    found = named_leaves(begun(other, str(tmp_path)))
    assert found["head/kernel"].shape == (32, 7) and not np.any(found["head/kernel"])
    np.testing.assert_array_equal(found["fc_norm/scale"], named_leaves(classifier)["fc_norm/scale"])
    assert "begins from the seed: head" in capsys.readouterr().out


def test_the_average_is_taken_where_it_is_asked_for(encoders, tmp_path, capsys):
    config = resolved("nepa", encoders["nepa"], run__init_ema="true")
    with pytest.raises(UserError, match="holds no average"):
        begun(config, encoders["nepa"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__num_heads": "4"}, "try --config.model.num_heads=2"),
        ({"model__rope_base": "none"}, "try --config.model.rope_base=100.0"),
        ({"model__posemb": "learned"}, "try --config.model.posemb=none"),
        ({"model__final_norm": "false", "model__qk_norm_affine": "false"}, ""),
    ],
)
def test_another_encoder_is_one_clear_line(encoders, changes, told):
    config = resolved("nepa", encoders["nepa"], **changes)
    if not told:  # fewer parts of the same encoder
        assert "vit/norm/scale" not in named_leaves(begun(config, encoders["nepa"]))
        return
    with pytest.raises(UserError, match=told):
        begun(config, encoders["nepa"])


def test_fresh_heads_are_those_of_the_recipe(encoders):
    config = resolved("mae", encoders["mae"])
    head = np.asarray(begun(config, encoders["mae"]).head.kernel[...])
    assert 1e-5 < head.std() < 3e-5
    assert not np.any(np.asarray(begun(config, encoders["mae"]).head.bias[...]))
