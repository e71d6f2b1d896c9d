"""Models with random parameters in every place, as workdirs that exports start from."""

from collections.abc import Callable

import jax
import numpy as np
import pytest
from flax import nnx

from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.checkpoint.meta import Provenance
from nepa_jax.checkpoint.weights import save_weights
from nepa_jax.config import base_config
from nepa_jax.formats.convert import compare, fill, stream_arrays
from nepa_jax.objectives.base import load_objective

NEPA = dict(qk_norm=True, layer_scale_init=1e-5, norm_eps=1e-12, init="normal", rope_rescale=2.0)
OBJECTIVES = {
    "nepa": dict(name="nepa_jax.objectives.nepa", include_cls=True, causal=True, shift=1, stop_gradient=True),
    "mae": dict(
        name="nepa_jax.objectives.mae", mask_ratio=0.75, norm_pix_loss=True,
        decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, decoder_mlp_ratio=4.0,
    ),
}  # fmt: skip
SUPERVISED = "nepa_jax.objectives.supervised"
HEADS = {
    "cls": dict(name=SUPERVISED, num_classes=5, pool="cls", causal=False),
    "mean": dict(name=SUPERVISED, num_classes=5, pool="mean", causal=False),
}
# Model: the method it starts from, changes of its model section, another objective.
VARIANTS = {
    "nepa": ("nepa", NEPA, None),
    "nepa_affine": ("nepa", NEPA | dict(qk_norm_affine=True), None),
    "nepa_paper": ("nepa", NEPA | dict(mlp="swiglu", mlp_ratio=2.5, posemb="learned"), None),
    "nepa_geglu": (
        "nepa",
        NEPA | dict(mlp="geglu", qkv_bias=False, qk_norm_affine=True, qk_norm_bias=True),
        OBJECTIVES["nepa"] | dict(causal=False),
    ),
    "nepa_no_bias": ("nepa", NEPA | dict(qkv_bias=False), None),
    # Widths that PyTorch's int() and our round() see differently, and what few models have.
    "nepa_odd": (
        "nepa",
        NEPA | dict(mlp_ratio=2.67, image_size=(6, 12), qk_norm_affine=True, qk_norm_bias=True),
        None,
    ),
    "mae_odd": (
        "mae",
        dict(mlp_ratio=2.67, in_channels=1, pixel_mean=(0.4,), pixel_std=(0.2,)),
        OBJECTIVES["mae"] | dict(decoder_mlp_ratio=2.67),
    ),
    "nepa_class": ("nepa", NEPA, HEADS["mean"]),
    "mae": ("mae", {}, None),
    "mae_other": (
        "mae",
        dict(qkv_bias=False, norm_eps=1e-3, mlp_ratio=2.0),
        OBJECTIVES["mae"] | dict(decoder_mlp_ratio=3.0),
    ),
    "mae_eps": (
        "mae",
        dict(norm_eps=1e-3, mlp_ratio=2.0),
        OBJECTIVES["mae"] | dict(decoder_mlp_ratio=2.0),
    ),
    "vit_narrow": ("mae", dict(posemb="learned", embed_dim=18), HEADS["cls"]),
    "vit_no_bias": ("mae", dict(posemb="learned", qkv_bias=False), HEADS["cls"]),
    "vit_cls": ("mae", dict(posemb="learned"), HEADS["cls"]),
    "vit_mean": ("mae", dict(final_norm=False), HEADS["mean"]),
}


def make_config(variant):
    """Two layers of width 16 on 12 px images."""
    method, changes, objective = VARIANTS[variant]
    config = base_config()
    config.objective = objective or OBJECTIVES[method]
    with config.ignore_type():
        config.model.update(image_size=(12, 12), patch_size=2, embed_dim=16, depth=2, num_heads=2)
        config.model.update(posemb="sincos" if method == "mae" else "none")
        config.model.rope_base = None if method == "mae" else 100.0
        config.model.update(changes)
        config.run.dtype = "float32"
    return config


def make_model(config, seed=0):
    objective = load_objective(config.objective.name)
    shapes = nnx.eval_shape(lambda: objective.init_model(config, nnx.Rngs(0)))
    rng = np.random.default_rng(seed)
    leaves = {
        k: rng.normal(0, 0.3, leaf.shape).astype(np.float32)
        for k, leaf in named_leaves(shapes).items()
    }
    return with_leaves(shapes, leaves)


def export_arrays(model, table):
    """A model's parameters under a format's names and layouts."""
    return dict(stream_arrays(model, table))


def import_arrays(model, table, arrays):
    """The model (its leaves may be shapes alone) with all its parameters taken from a format's arrays."""
    compare(model, table, arrays).require_complete("arrays")
    return jax.tree.map(np.asarray, fill(model, table, arrays))


def assert_same(ours, theirs):
    ours, theirs = named_leaves(ours), named_leaves(theirs)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)


def workdirs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function from a variant's name to a workdir with a checkpoint of step 7."""
    made = {}

    def make(variant):
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant)
            config = make_config(variant)
            save_weights(str(folder), 7, make_model(config), Provenance.of(config, "abc" * 9))
            (folder / "metrics.jsonl").write_text('{"step": 7, "train/loss": 0.25}\n')
            made[variant] = str(folder)
        return made[variant]

    return make
