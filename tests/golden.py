"""Opens the golden cases: arrays computed by the official PyTorch code of NEPA and MAE."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from safetensors.numpy import load_file
from variants import export_arrays, import_arrays

from nepa_jax.formats.tables import FORMATS
from nepa_jax.objectives.base import load_objective

OUTPUT_ATOL = 1e-4
LOSS_ATOL = 1e-5
GOLDEN = Path(__file__).parent / "fixtures" / "golden"


@dataclass(frozen=True)
class Case:
    """One golden case, its model in ours, and the batch it was computed on."""

    meta: dict
    arrays: dict[str, np.ndarray]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays under a prefix such as ``param.``, without it."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    @property
    def table(self):
        return FORMATS["nepa" if "hidden_size" in self.meta["config"] else "mae"]

    @property
    def images(self) -> jax.Array:
        """Normalised float images [B, H, W, C]; the model's own normalisation is set to undo /255."""
        images = self.arrays.get("input.pixel_values", self.arrays.get("input.imgs"))
        return jnp.asarray(images.transpose(0, 2, 3, 1))

    def objective(self):
        name = {"classification": "supervised"}.get(self.meta["objective"], self.meta["objective"])
        name = "supervised" if "num_labels" in self.meta["config"] else name
        return load_objective(f"nepa_jax.objectives.{name}")

    def model(self, prefix: str = "param.", **changes) -> nnx.Module:
        """Our model with the case's parameters, loaded through the export table."""
        config = case_config(self.meta["config"])
        config.model.update(changes)
        shapes = nnx.eval_shape(lambda: self.objective().init_model(config, nnx.Rngs(0)))
        return import_arrays(shapes, self.table, self.group(prefix))

    def exported(self, tree: nnx.Module) -> dict[str, np.ndarray]:
        """Parameters, or gradients in their shape, under the reference's names."""
        return export_arrays(tree, self.table)


def load_case(name: str, folder: str = "golden") -> Case:
    return Case(*read_case(folder, name))


def read_case(folder: str, name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """What the json says, and the arrays."""
    file = GOLDEN.parent / folder / name
    return json.loads(file.with_suffix(".json").read_text()), load_file(
        file.with_suffix(".safetensors")
    )


def case_config(reference: dict) -> ConfigDict:
    """The run config of a reference's model config."""
    from_reference = nepa_config if "hidden_size" in reference else mae_config
    config = ConfigDict(from_reference(reference))
    config.run = ConfigDict(dict(dtype="float32", remat="none"))
    return config


RAW_PIXELS = dict(pixel_mean=(0.0,) * 3, pixel_std=(1 / 255,) * 3)


def nepa_config(c: dict) -> dict:
    return dict(
        model=dict(
            image_size=(c["image_size"],) * 2, patch_size=c["patch_size"], embed_dim=c["hidden_size"],
            depth=c["num_hidden_layers"], num_heads=c["num_attention_heads"],
            mlp_ratio=c["intermediate_size"] / c["hidden_size"], mlp="swiglu" if c["use_gated_mlp"] else "gelu",
            rope_base=c["rope_theta"], qk_norm=c["qk_norm"], qk_norm_affine=c["qk_norm_affine"],
            qkv_bias=c["qkv_bias"], qk_norm_bias=c["qk_norm_bias"],
            layer_scale_init=c["layerscale_value"], norm_eps=c["layer_norm_eps"], init="normal", **RAW_PIXELS,
        ),
        objective=dict(include_cls=True, shift=1, stop_gradient=True, num_classes=c.get("num_labels"), pool="mean", causal=c["is_causal"]),
    )  # fmt: skip


def mae_config(c: dict) -> dict:
    classifier = "num_classes" in c
    return dict(
        model=dict(
            image_size=(c["img_size"],) * 2, patch_size=c["patch_size"], embed_dim=c["embed_dim"],
            depth=c["depth"], num_heads=c["num_heads"], mlp_ratio=c["mlp_ratio"], norm_eps=c["layer_norm_eps"],
            posemb="learned" if classifier else "sincos", final_norm=not classifier, **RAW_PIXELS,
        ),
        objective=dict(num_classes=c["num_classes"], pool="mean", causal=False) if classifier else dict(
            mask_ratio=c["mask_ratio"], norm_pix_loss=c["norm_pix_loss"], decoder_embed_dim=c["decoder_embed_dim"],
            decoder_depth=c["decoder_depth"], decoder_num_heads=c["decoder_num_heads"],
            decoder_mlp_ratio=c["mlp_ratio"]),
    )  # fmt: skip


def assert_gradients(case: Case, grads: nnx.Module) -> None:
    """Each to 1e-4 of the tensor's largest entry; exactly the reference's names."""
    ours, theirs = case.exported(grads), case.group("grad.")
    fixed = set(case.meta.get("frozen_params", []))
    assert set(ours) - fixed == set(theirs)
    for name, wanted in theirs.items():
        scale = max(np.abs(wanted).max(), 1e-7)
        np.testing.assert_allclose(ours[name] / scale, wanted / scale, atol=1e-4, err_msg=name)


@partial(jax.jit, static_argnames="causal")
def hidden_states(model: nnx.Module, images: jax.Array, causal: bool) -> jax.Array:
    """Every hidden state of a model's ViT."""
    return model.vit.hidden_states(images, causal=causal)


def assert_classifier(case: Case, model: nnx.Module, pooled: str) -> None:
    """Features (under the reference's name ``pooled``), logits, loss and gradients."""
    kind = type(model)
    for compute, wanted in ((kind.features, pooled), (kind.__call__, "out.logits")):
        found = jax.jit(compute)(model, case.images)
        np.testing.assert_allclose(found, case.arrays[wanted], atol=OUTPUT_ATOL, err_msg=wanted)
    batch = {
        "image": case.images,
        "row": jnp.arange(len(case.images)),
        "label": jnp.asarray(case.arrays["input.labels"]),
    }
    grad = jax.jit(jax.value_and_grad(case.objective().loss, has_aux=True))
    (loss, _), grads = grad(model, None, batch, jax.random.key(0))
    np.testing.assert_allclose(loss, case.arrays["out.loss"], atol=LOSS_ATOL)
    assert_gradients(case, grads)
