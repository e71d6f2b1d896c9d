"""NEPA against the official PyTorch code (SihanXU/nepa at 15ea494), array by array."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from golden import LOSS_ATOL, OUTPUT_ATOL, assert_classifier, assert_gradients, hidden_states

from nepa_jax import optim, step
from nepa_jax.config import base_config
from nepa_jax.mesh import make_mesh, put_batch
from nepa_jax.models import rope
from nepa_jax.objectives import nepa

PRETRAINING = ["nepa_gelu", "nepa_swiglu_affine"]


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_hidden_state_matches(name):
    case = golden.load_case(name)
    model = case.model()
    states = hidden_states(model, case.images, causal=True)
    for layer, state in enumerate(states):
        wanted = case.arrays[f"out.hidden_states.{layer}"]
        np.testing.assert_allclose(state, wanted, atol=OUTPUT_ATOL, err_msg=f"layer {layer}")
    np.testing.assert_allclose(
        model.vit.norm(states[-1]), case.arrays["out.last_hidden_state"], atol=OUTPUT_ATOL
    )
    embeddings = model.vit.embed(model.vit.patches(case.images))
    np.testing.assert_allclose(
        embeddings, case.arrays["out.input_embedding"][:, 1:], atol=OUTPUT_ATOL
    )


@pytest.mark.parametrize("name", PRETRAINING)
def test_loss_and_gradients_match_with_the_last_patch_left_out(name):
    case = golden.load_case(name)
    batch = {"image": case.images, "row": jnp.arange(len(case.images))}
    (loss, aux), grads = jax.jit(jax.value_and_grad(nepa.loss, has_aux=True))(
        case.model(), None, batch, jax.random.key(0)
    )
    np.testing.assert_allclose(loss, case.arrays["out.loss"], atol=LOSS_ATOL)
    assert_gradients(case, grads)
    z = case.arrays["out.input_embedding"][:, 1:]
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    np.testing.assert_allclose(
        aux.metrics["cos_copy"], (z[:, :-1] * z[:, 1:]).sum(-1).mean(), atol=1e-5
    )


def test_classifier_matches():
    case = golden.load_case("nepa_cls_bidir")
    model = case.model()
    states = hidden_states(model, case.images, causal=False)
    for layer, state in enumerate(states):
        np.testing.assert_allclose(
            state, case.arrays[f"out.hidden_states.{layer}"], atol=OUTPUT_ATOL
        )
    assert_classifier(case, model, "out.pooled")


@pytest.mark.parametrize("entry", range(4))
def test_rope_tables_match(entry):
    case = golden.load_case("nepa_rope")
    spec = case.meta["entries"][entry]
    coords = rope.patch_coords((spec["grid_h"], spec["grid_w"]))
    table = rope.rope_table(coords, spec["head_dim"], spec["rope_theta"])
    np.testing.assert_allclose(table.cos, case.arrays[f"out.{entry}.cos"], atol=1e-5)
    np.testing.assert_allclose(table.sin, case.arrays[f"out.{entry}.sin"], atol=1e-5)
    if f"input.{entry}.shift_hw" not in case.arrays:
        return
    draw = rope.CoordDraw(
        *(case.arrays[f"input.{entry}.{k}"] for k in ("shift_hw", "jitter_hw", "rescale"))
    )
    moved = rope.move_coords(coords, draw)
    np.testing.assert_allclose(moved, case.arrays[f"out.{entry}.augmented_coords_hw"], atol=1e-6)
    table = rope.rope_table(moved, spec["head_dim"], spec["rope_theta"])
    np.testing.assert_allclose(table.cos, case.arrays[f"out.{entry}.augmented_cos"], atol=2e-5)
    np.testing.assert_allclose(table.sin, case.arrays[f"out.{entry}.augmented_sin"], atol=2e-5)


def test_twenty_adamw_steps_follow_the_official_trajectory():
    case = golden.load_case("nepa_train20")
    config = golden.case_config(case.meta["config"])
    config.model.update(pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3)
    config.optim, config.evals = base_config().optim, base_config().evals
    config.optim.lr = 1e-3
    config.schedule = dict(warmup_steps=5, total_steps=20, final_lr=0.0)
    config.run.seed = 0
    config.mesh = dict(data=1, fsdp=1, tensor=1)
    config.data = dict(batch_size=len(case.arrays["input.batches_u8"][0]))
    mesh = make_mesh(config, jax.devices()[:1])
    state = step.init_state(config, nepa)
    state.model = case.model(pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3)
    update = step.make_update(config, nepa, step.abstract_state(config, nepa, mesh))
    for t, images in enumerate(case.arrays["input.batches_u8"]):
        state, metrics = update(state, put_batch({"image": images.transpose(0, 2, 3, 1)}, mesh))
        np.testing.assert_allclose(metrics["lr"], case.arrays["input.lr"][t], atol=1e-9)
        np.testing.assert_allclose(metrics["loss"], case.arrays["out.losses"][t], atol=LOSS_ATOL)
        np.testing.assert_allclose(
            metrics["grad_norm"], case.arrays["out.grad_norms"][t], rtol=1e-4
        )
    final = case.exported(state.model)
    for name, wanted in case.group("final.").items():
        np.testing.assert_allclose(final[name], wanted, atol=1e-5, err_msg=name)


def test_weight_decay_groups_match():
    case = golden.load_case("nepa_train20")
    groups = case.meta["weight_decay_groups"]
    config = small.resolved("nepa")
    marked = case.exported(
        optim.by_name(
            lambda name, leaf: np.full(leaf.shape, optim.decays(config, name), np.float32),
            case.model(),
        )
    )
    assert {name for name, mark in marked.items() if mark.all()} == set(groups["decay"])
    assert {name for name, mark in marked.items() if not mark.any()} == set(groups["no_decay"])
