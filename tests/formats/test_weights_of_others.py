"""Weights as other libraries and people save them: names, wrappers, configs, and what is guessed."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from nepa_jax.base.errors import UserError
from nepa_jax.export.folder import encoder_alone
from nepa_jax.export.importing import import_checkpoint
from nepa_jax.formats.configs import export_config
from nepa_jax.formats.reading import read_model
from nepa_jax.formats.sources import Choices, open_source
from nepa_jax.formats.tables import FORMATS
from nepa_jax.loading import load


@pytest.fixture
def made(kit):
    """A function from a format, a variant and whether the encoder alone to (arrays, their config, model)."""

    def make(name, variant, alone=False):
        config = kit.make_config(variant)
        model = kit.make_model(config)
        if alone:
            model, config = encoder_alone(model, config)
        return kit.export_arrays(model, FORMATS[name]), export_config(config, name), model

    return make


def folder(path, arrays, settings=None, metadata=None):
    path.mkdir()
    save_file(
        {k: np.ascontiguousarray(v) for k, v in arrays.items()},
        path / "model.safetensors",
        metadata,
    )
    if settings is not None:
        (path / "config.json").write_text(json.dumps(settings))
    return path


def opened(path, name=None, **choices):
    """The model of a place and its config; all names fit."""
    source = open_source(str(path), name, Choices(**choices))
    model, report = read_model(source)
    assert report.complete
    return jax.tree.map(np.asarray, model), source.config


def same(kit, model, expected):
    kit.assert_same(model, expected)


def without(arrays, prefix):
    return {name.removeprefix(prefix): array for name, array in arrays.items()}


# Names


@pytest.mark.trial
@pytest.mark.parametrize(
    ("name", "variant"), [("vit", "mae"), ("vit_mae", "mae"), ("nepa", "nepa_class")]
)
def test_an_encoder_saved_by_itself(kit, made, tmp_path, capsys, name, variant):
    arrays, theirs, model = made(name, variant, alone=True)
    base = FORMATS[name].base
    extra = {"pooler.dense.weight": np.zeros((16, 16), np.float32)} if name != "nepa" else {}
    path = folder(tmp_path / "d", without(arrays, base) | extra, theirs)
    same(kit, opened(path, name)[0], model)
    told = "left aside pooler (1 arrays): pooler.dense.weight" in capsys.readouterr().err
    assert told == bool(extra)


@pytest.mark.trial
def test_names_of_transformers_5(kit, made, tmp_path):
    arrays, theirs, model = made("vit_mae", "mae")
    renamed = {
        name.replace("decoder.decoder_layers.", "decoder.decoder_encoder.layer."): array
        for name, array in arrays.items()
    }
    assert renamed.keys() != arrays.keys()
    same(kit, opened(folder(tmp_path / "d", renamed, theirs))[0], model)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("name", "prefix"),
    [("mae", p) for p in ("module.", "model.", "backbone.", "encoder.", "_orig_mod.module.")]
    + [("vit", p) for p in ("module.", "model.", "backbone.")]
    + [("big_vision", "model/"), ("big_vision", "opt/"), ("nepa", "module.")],
)
def test_a_prefix_is_taken_away(kit, made, tmp_path, name, prefix):
    arrays, theirs, model = made(name, "nepa" if name == "nepa" else "mae", alone=name != "nepa")
    path = folder(tmp_path / "d", {prefix + n: a for n, a in arrays.items()}, theirs)
    same(kit, opened(path, name, overrides={"model.num_heads": "2"})[0], model)


WRAPPERS = {
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": s["norm.bias"]}}}},
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model_state": lambda s: {"model_state": s},
    "nested": lambda s: {"checkpoint": {"model": {"module": s}}},
    "lightning": lambda s: {"state_dict": {f"model.backbone.{k}": v for k, v in s.items()}},
    "plain": lambda s: s,
    "averaged": lambda s: {"model": s, "model_ema": {k: v * 0 for k, v in s.items()}},
    "teacher": lambda s: {
        "student": {f"module.backbone.{k}": v * 0 for k, v in s.items()},
        "teacher": {f"backbone.{k}": v for k, v in s.items()},
    },
}


@pytest.mark.trial
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_in_a_pth(kit, made, tmp_path, capsys, wrapper):
    torch = pytest.importorskip("torch")
    arrays, _, model = made("mae", "mae", alone=True)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(WRAPPERS[wrapper](state), tmp_path / "w.pth")
    same(kit, opened(tmp_path / "w.pth", "mae", overrides={"model.num_heads": "2"})[0], model)
    told = capsys.readouterr().err
    if wrapper in ("model", "averaged"):
        assert re.search(
            r"left aside outside of model\. \(\d+ arrays\): (optimizer|model_ema)", told
        )
    if wrapper == "teacher":
        assert "left aside outside of teacher.backbone." in told


@pytest.mark.trial
def test_one_of_several_encoders_is_named(kit, made, tmp_path):
    torch = pytest.importorskip("torch")
    arrays, _, model = made("mae", "mae", alone=True)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    halves = {"query": state, "momentum": {k: v * 0 for k, v in state.items()}}
    torch.save(halves, tmp_path / "w.pth")
    path, heads = tmp_path / "w.pth", {"model.num_heads": "2"}
    with pytest.raises(UserError, match=r"holds 2 encoders: 'momentum\.', 'query\.'; name one"):
        opened(path, "mae")
    same(kit, opened(f"{path}#query", "mae", overrides=heads)[0], model)
    with pytest.raises(UserError, match=r"w\.pth#key: there is no such entry .*momentum, query"):
        opened(f"{path}#key", "mae")


@pytest.mark.trial
def test_a_place_says_its_format(kit, made, tmp_path):
    arrays, _, model = made("mae", "mae", alone=True)
    path = folder(tmp_path / "d", arrays)
    same(kit, opened(f"{path}:mae", overrides={"model.num_heads": "2"})[0], model)
    with pytest.raises(UserError, match=r"does not say its format; write .*:FORMAT"):
        opened(path)


@pytest.mark.trial
def test_names_of_the_first_flax_code(kit, made, tmp_path):
    """Its position table has a row for the class token."""
    arrays, _, _ = made("big_vision", "mae", alone=True)
    theirs = {
        name.removeprefix("params/")
        .replace("pos_embedding", "Transformer/posembed_input/pos_embedding")
        .replace("LayerNorm_1", "LayerNorm_2")
        .replace("MlpBlock_0", "MlpBlock_3")
        .replace("Attention_0", "Attention_1"): array
        for name, array in arrays.items()
    }
    first = np.full((1, 1, 16), 0.5, np.float32)
    table = "Transformer/posembed_input/pos_embedding"
    theirs[table] = np.concatenate([first, theirs[table]], axis=1)
    np.savez(tmp_path / "ViT-B_16.npz", **theirs)
    model, config = opened(tmp_path / "ViT-B_16.npz", "big_vision")
    assert config.model.posemb == "learned" and config.model.pixel_mean == (0.5, 0.5, 0.5)
    np.testing.assert_array_equal(np.asarray(model.vit.pos_embed[...])[0], first[0, 0])


@pytest.mark.trial
def test_a_table_without_the_class_tokens_row(made, tmp_path):
    """As DeiT III saves it."""
    arrays, _, _ = made("timm", "vit_cls")
    arrays["pos_embed"] = arrays["pos_embed"][:, 1:]
    model, _ = opened(folder(tmp_path / "d", arrays), "timm", overrides={"model.num_heads": "2"})
    table = np.asarray(model.vit.pos_embed[...])
    assert not table[0].any()
    np.testing.assert_array_equal(table[1:], arrays["pos_embed"][0])


# Configs


@pytest.mark.trial
def test_a_hub_folder_of_timm(kit, made, tmp_path, capsys):
    """The name of the architecture says what is no argument; weights say the rest."""
    arrays, _, model = made("timm", "vit_cls")
    settings = {
        "architecture": "vit_tiny_patch16_224", "num_classes": 5, "global_pool": "token",
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }  # fmt: skip
    path = folder(tmp_path / "d", arrays, settings, {"format": "pt"})
    found, config = opened(path, overrides={"model.num_heads": "2"})
    same(kit, found, model)
    assert config.model.pixel_mean == (0.1, 0.2, 0.3)
    assert config.objective.pool == "cls" and config.objective.num_classes == 5
    told = capsys.readouterr().err
    assert "--config.model.norm_eps=1e-06" in told and "num_heads" not in told


@pytest.mark.trial
@pytest.mark.parametrize("key", ["act_layer", "norm_layer", "block_fn"])
def test_a_part_that_names_do_not_show_is_refused(made, tmp_path, key):
    settings = {"architecture": "vit_tiny_patch16_224", "model_args": {key: "other"}}
    path = folder(tmp_path / "d", made("timm", "vit_cls")[0], settings)
    with pytest.raises(UserError, match=f"{key} = other is not supported"):
        opened(path)


@pytest.mark.trial
def test_a_head_that_pools_otherwise_is_left_aside(made, tmp_path, capsys):
    settings = {"architecture": "vit_tiny_patch16_224", "global_pool": "avg"}
    path = folder(tmp_path / "d", made("timm", "vit_cls")[0], settings)
    assert opened(path)[1].objective.name == "nepa_jax.objectives.encoder"
    assert "left aside head (2 arrays): head.bias, head.weight" in capsys.readouterr().err


@pytest.mark.trial
@pytest.mark.parametrize("labels", [2, 3])
def test_two_labels_are_not_written(kit, tmp_path, labels):
    config = kit.make_config("vit_cls")
    config.objective.num_classes = labels
    model, theirs = kit.make_model(config), export_config(config, "vit")
    del theirs["num_labels"]
    theirs |= {"id2label": {str(i): f"LABEL_{i}" for i in range(labels)}} if labels != 2 else {}
    path = folder(tmp_path / "d", kit.export_arrays(model, FORMATS["vit"]), theirs)
    found, config = opened(path)
    same(kit, found, model)
    assert config.objective.num_classes == labels


@pytest.mark.trial
def test_a_classifier_of_a_class_without_one_is_left_aside(made, tmp_path, capsys):
    arrays, theirs, _ = made("vit", "vit_cls")
    path = folder(tmp_path / "d", arrays, theirs | {"architectures": ["ViTModel"]})
    assert opened(path)[1].objective.name == "nepa_jax.objectives.encoder"
    assert "left aside head (2 arrays): classifier.bias" in capsys.readouterr().err


@pytest.mark.trial
@pytest.mark.parametrize(
    ("key", "value", "size"),
    [
        ("patch_size", [2, 2], (12, 12)),
        ("image_size", [12, 12], (12, 12)),
        ("image_size", 12, (12, 12)),
    ],
)
def test_sizes_as_pairs(kit, made, tmp_path, key, value, size):
    arrays, theirs, model = made("vit", "vit_cls")
    found, config = opened(folder(tmp_path / "d", arrays, theirs | {key: value}))
    same(kit, found, model)
    assert config.model.patch_size == 2 and config.model.image_size == size


@pytest.mark.trial
def test_dropout_is_left_aside_and_told(kit, made, tmp_path, capsys):
    arrays, theirs, model = made("vit", "vit_cls")
    path = folder(tmp_path / "d", arrays, theirs | {"hidden_dropout_prob": 0.1})
    same(kit, opened(path)[0], model)
    assert "left aside dropout (hidden_dropout_prob = 0.1)" in capsys.readouterr().err


WRONG = [
    ("patch_size", [2, 4]), ("patch_size", [2, 2, 2]), ("patch_size", "2"), ("patch_size", 0),
    ("patch_size", {"h": 2}), ("patch_size", True), ("image_size", [12, "x"]), ("image_size", 13),
    ("image_size", 10**6), ("image_size", []), ("hidden_size", "x"), ("hidden_size", 10**9),
    ("hidden_size", None), ("hidden_size", -16), ("hidden_size", [16]), ("num_hidden_layers", 10**6),
    ("num_hidden_layers", 2.5), ("num_attention_heads", 0), ("num_attention_heads", 3),
    ("intermediate_size", 0), ("intermediate_size", 10**400), ("layer_norm_eps", "1e400"),
    ("layer_norm_eps", -1), ("num_channels", 10**9), ("qkv_bias", "yes"), ("hidden_act", "gelu_new"),
    ("hidden_act", "quick_gelu"), ("hidden_act", ["gelu"]), ("model_type", "deit"),
    ("architectures", 5), ("architectures", "ViTModel"), ("architectures", ["BertModel"]),
    ("architectures", [5]), ("num_labels", "x"), ("num_labels", -1), ("num_labels", 10**9),
]  # fmt: skip


@pytest.mark.trial
@pytest.mark.parametrize(("key", "value"), WRONG, ids=lambda v: str(v)[:20])
def test_a_value_of_config_json_that_is_wrong_is_told_at_once(made, tmp_path, key, value):
    arrays, theirs, _ = made("vit", "vit_cls")
    path = folder(tmp_path / "d", arrays, theirs | {key: value})
    with pytest.raises(UserError) as caught:
        opened(path)
    text = str(caught.value)
    assert str(path) in text and "Traceback" not in text


@pytest.mark.trial
@pytest.mark.parametrize("text", ["{", "[]", "5", "null", '"x"', "[" * 100_000, "\udcff"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "provenance.json"])
def test_settings_that_are_none_are_one_line(made, tmp_path, file, text):
    arrays, theirs, _ = made("vit", "vit_cls")
    path = folder(tmp_path / "d", arrays, theirs)
    (path / file).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=f"{file}: (is|holds) ") as caught:
        opened(path, "vit")
    assert "\n" not in str(caught.value)


@pytest.mark.trial
@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"image_mean": "x", "image_std": [1, 1, 1]}, "pixel_mean"),
        ({"image_mean": [0.5], "image_std": [0.5]}, "pixel_mean"),
        ({"image_mean": [0.5] * 3, "image_std": [0, 0, 0]}, "pixel_std"),
        ({"image_mean": 5, "image_std": {"a": 1}}, "pixel_mean"),
    ],
)
def test_a_normalisation_that_is_wrong_is_told(made, tmp_path, settings, key):
    arrays, theirs, _ = made("vit", "vit_cls")
    path = folder(tmp_path / "d", arrays, theirs)
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=f"model.{key}"):
        opened(path)


MLPS = [
    (False, "gelu", "gelu"), (True, "silu", "swiglu"), (True, "gelu", "geglu"),
    (False, "relu", None), (False, "silu", None), (False, "gelu_new", None), (True, "relu", None),
    (True, "gelu_new", None), (1, "x", None), ("yes", "gelu", None),
]  # fmt: skip


@pytest.mark.trial
@pytest.mark.parametrize(("gated", "activation", "mlp"), MLPS)
def test_every_activation_of_nepa(kit, made, tmp_path, gated, activation, mlp):
    arrays, theirs, _ = made("nepa", "nepa_geglu" if gated else "nepa")
    theirs |= {"use_gated_mlp": gated, "hidden_act": activation}
    path = folder(tmp_path / "d", arrays, theirs)
    if mlp is None:
        with pytest.raises(UserError, match=f"hidden_act = {activation} with use_gated_mlp"):
            opened(path)
    else:
        assert opened(path)[1].model.mlp == mlp


@pytest.mark.trial
def test_what_nepas_code_takes_where_a_config_does_not_say(kit, made, tmp_path):
    arrays, theirs, model = made("nepa", "nepa")
    for key in ("use_gated_mlp", "hidden_act", "qkv_bias", "qk_norm_bias", "is_causal"):
        del theirs[key]
    same(kit, opened(folder(tmp_path / "d", arrays, theirs))[0], model)


# Guesses


@pytest.mark.parametrize("name", ["mae", "timm", "big_vision"])
def test_guesses_are_printed_as_the_overrides_that_change_them(kit, made, tmp_path, capsys, name):
    arrays, _, model = made(name, "mae", alone=True)
    path = folder(tmp_path / "d", arrays)
    found, config = opened(path, name)
    told = capsys.readouterr().err
    heads = [] if name == "big_vision" else ["--config.model.num_heads=1"]
    for word in [*heads, "--config.model.norm_eps=1e-06", "--config.model.image_size=(12,12)",
                 "--config.model.pixel_mean="]:  # fmt: skip
        assert word in told
    overrides = {"model.norm_eps": "1e-3", "model.pixel_mean": "(0.1, 0.2, 0.3)"}
    overrides |= {} if name == "big_vision" else {"model.num_heads": "2"}
    found, config = opened(path, name, overrides=overrides)
    same(kit, found, model)
    assert (config.model.num_heads, config.model.norm_eps) == (2, 1e-3)
    assert config.model.pixel_mean == (0.1, 0.2, 0.3)
    assert "norm_eps" not in capsys.readouterr().err


def test_guesses_of_a_decoder(kit, made, tmp_path, capsys):
    arrays, _, model = made("mae", "mae_eps")
    path = folder(tmp_path / "d", arrays)
    overrides = {"model.num_heads": "2", "objective.decoder_num_heads": "2"}
    found, config = opened(path, "mae", overrides=overrides)
    same(kit, found, model)
    assert (config.model.mlp_ratio, config.objective.decoder_mlp_ratio) == (2.0, 2.0)
    told = capsys.readouterr().err
    assert "--config.objective.mask_ratio=0.75 --config.objective.norm_pix_loss=True" in told


@pytest.mark.trial
@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("model.num_heads", "3", "does not divide embed_dim"), ("model.heads", "2", "num_heads"),
        ("model.num_heads", "many", "wrong type"), ("model.embed_dim", "32", "has shape"),
        ("objective.mask_ratio", "2", "mask_ratio"),
    ],
)  # fmt: skip
def test_an_override_that_is_wrong_is_told(made, tmp_path, key, value, told):
    path = folder(tmp_path / "d", made("mae", "mae")[0])
    with pytest.raises(UserError, match=told):
        opened(path, "mae", overrides={key: value})


@pytest.mark.trial
def test_images_that_are_not_square_are_given(kit, tmp_path):
    config = kit.make_config("vit_cls")
    config.model.image_size = (8, 16)
    model = kit.make_model(config)
    path = folder(tmp_path / "d", kit.export_arrays(model, FORMATS["timm"]))
    heads = {"model.num_heads": "2"}
    with pytest.raises(UserError, match="pos_embed has shape"):
        opened(path, "timm", overrides=heads)
    found, _ = opened(path, "timm", overrides=heads | {"model.image_size": "(8, 16)"})
    same(kit, found, model)


def test_an_import_with_overrides_is_what_is_saved(made, tmp_path):
    path = folder(tmp_path / "d", made("mae", "mae")[0])
    overrides = {"model.num_heads": "4", "objective.decoder_num_heads": "2"}
    import_checkpoint(str(path), "mae", str(tmp_path / "w"), choices=Choices(overrides=overrides))
    assert load(str(tmp_path / "w")).model.vit.config.num_heads == 4
