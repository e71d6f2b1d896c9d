"""Each table is a bijection on real parameter trees; each config survives there and back."""

import golden
import numpy as np
import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.config import flat_keys
from nepa_jax.export.card import LOADING
from nepa_jax.export.folder import encoder_alone
from nepa_jax.formats.config_tables import CONFIG_TABLES
from nepa_jax.formats.configs import export_config, floored_ratio, import_config
from nepa_jax.formats.convert import array_shapes, entries
from nepa_jax.formats.tables import FORMATS

# Format, model, whether the encoder alone.
PAIRS = [
    ("nepa", "nepa", False), ("nepa", "nepa_affine", False), ("nepa", "nepa_paper", False),
    ("nepa", "nepa_class", False), ("nepa", "nepa_class", True), ("nepa", "nepa_geglu", False),
    ("vit_mae", "mae_other", False), ("vit", "mae_other", True), ("timm", "vit_no_bias", False),
    ("mae", "mae_eps", False), ("timm_eva", "nepa_no_bias", True),
    ("mae", "mae", False), ("mae", "mae", True), ("mae", "vit_mean", False),
    ("vit_mae", "mae", False), ("vit_mae", "mae", True),
    ("vit", "mae", True), ("vit", "vit_cls", False),
    ("timm", "mae", True), ("timm", "vit_cls", False), ("timm", "vit_mean", False),
    ("timm_eva", "nepa", True), ("timm_eva", "nepa_affine", True), ("big_vision", "mae", True),
]  # fmt: skip


def model_of(kit, variant, alone):
    config = kit.make_config(variant)
    model = kit.make_model(config)
    return encoder_alone(model, config) if alone else (model, config)


def test_a_format_has_a_row_in_every_table(torch):
    from nepa_jax.export.torch_model.run import OPENERS

    assert {name for name, *_ in PAIRS} == FORMATS.keys() == CONFIG_TABLES.keys()
    assert LOADING.keys() == OPENERS.keys() == FORMATS.keys()


@pytest.mark.parametrize(("name", "variant", "alone"), PAIRS)
def test_a_table_is_a_bijection_and_bit_exact(kit, name, variant, alone):
    model, _ = model_of(kit, variant, alone)
    table = FORMATS[name]
    theirs = kit.export_arrays(model, table)
    assert len(theirs) == len(entries(model, table)), "two of ours have one name there"
    assert {key: array.shape for key, array in theirs.items()} == array_shapes(model, table)
    back = kit.import_arrays(model, table, theirs)
    kit.assert_same(model, back)
    for key, array in kit.export_arrays(back, table).items():
        np.testing.assert_array_equal(array, theirs[key], err_msg=key)


@pytest.mark.parametrize(
    ("name", "variant", "alone"), [p for p in PAIRS if p[0] not in ("mae", "big_vision")]
)
def test_a_config_comes_back(kit, name, variant, alone):
    _, config = model_of(kit, variant, alone)
    back = import_config(export_config(config, name), name, "config.json")
    before, after = flat_keys(config), flat_keys(back)
    drop = {
        "model.init",
        "model.pixel_mean",
        "model.pixel_std",
        "model.posemb",
        "objective.include_cls",
        "objective.shift",
        "objective.stop_gradient",
    }
    drop |= {"model.drop_path_rate"} | ({"model.qk_norm_affine"} if name == "timm_eva" else set())
    for key in before:
        if key.startswith(("model.", "objective.")) and key not in drop:
            assert after[key] == before[key], key


@pytest.mark.parametrize("case", ["nepa_gelu", "nepa_swiglu_affine", "nepa_cls_bidir"])
def test_the_official_config_comes_back(case):
    theirs = dict(golden.load_case(case).meta["config"])
    classifier = "num_labels" in theirs
    theirs["architectures"] = [
        "ViTNepaForImageClassification" if classifier else "ViTNepaForPreTraining"
    ]
    again = export_config(import_config(theirs, "nepa", "config.json"), "nepa")
    for key, value in theirs.items():
        if not (key == "add_pooling_layer" and not classifier):  # unused in pretraining
            assert again[key] == value, key


def test_big_vision_adds_the_class_tokens_position_to_the_token(kit):
    model, table = kit.make_model(kit.make_config("vit_cls")), FORMATS["big_vision"]
    theirs = kit.export_arrays(model, table)
    expected = np.asarray(model.vit.cls_token[...]) + np.asarray(model.vit.pos_embed[...])[0]
    np.testing.assert_array_equal(theirs["params/cls"][0, 0], expected)
    again = kit.export_arrays(kit.import_arrays(model, table, theirs), table)
    for key, array in theirs.items():
        np.testing.assert_array_equal(again[key], array, err_msg=key)


@pytest.mark.parametrize(
    ("name", "variant", "told"),
    [
        ("vit_mae", "nepa", "model.rope_base = 100.0"), ("timm", "mae", "add --encoder-only"),
        ("vit", "vit_mean", "model.final_norm = False"),
        ("timm_eva", "nepa_paper", "model.mlp = swiglu"),
        ("vit_mae", "vit_cls", "holds no such model"), ("nepa", "mae", "add --encoder-only"),
    ],
)  # fmt: skip
def test_a_model_that_a_format_cannot_hold_is_refused(kit, name, variant, told):
    with pytest.raises(UserError, match=told):
        export_config(kit.make_config(variant), name)


@pytest.mark.parametrize(
    ("name", "variant", "key", "value"),
    [
        ("timm", "vit_cls", "model.posemb", "none"), ("big_vision", "vit_cls", "model.posemb", "none"),
        ("vit", "vit_cls", "model.posemb", "none"), ("nepa", "nepa", "model.rope_base", None),
        ("nepa", "nepa_class", "objective.pool", "cls"),
    ],
)  # fmt: skip
def test_what_a_library_cannot_build_is_refused(kit, name, variant, key, value):
    config = kit.make_config(variant)
    section, _, leaf = key.partition(".")
    config[section][leaf] = value
    with pytest.raises(UserError, match=f"{key} = {value}: format '{name}' can only hold others"):
        export_config(config, name)


def test_one_ratio_must_do_for_both_mlps_of_the_official_mae(kit):
    config = kit.make_config("mae_odd")
    assert export_config(config, "mae")["architectures"] == ["mae"]
    config.objective.decoder_embed_dim = 100  # 2.67 makes 267 units, 43 / 16 makes 268
    with pytest.raises(UserError, match=r"decoder_mlp_dim = 267: .* can only hold 268"):
        export_config(config, "mae")


@pytest.mark.parametrize("width", [1, 7, 16, 49, 196, 1408])
def test_a_ratio_that_is_rounded_down_makes_the_same_mlp(width):
    for ratio in (0.6, 1.5, 8 / 3, 2.67, 1 / 49, 4.0, 6144 / 1408):
        assert int(width * floored_ratio(ratio, width)) == round(width * ratio)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("hidden_act", "relu", "hidden_act = relu with use_gated_mlp = False is not supported"),
        ("architectures", ["BertModel"], r"'BertModel'\] is not supported; known are"),
        ("hidden_size", None, "lacks hidden_size"),
    ],
)
def test_a_config_of_another_kind_is_refused(kit, key, value, told):
    theirs = export_config(kit.make_config("nepa"), "nepa")
    theirs[key] = value
    if value is None:
        del theirs[key]
    with pytest.raises(UserError, match=told):
        import_config(theirs, "nepa", "config.json")
