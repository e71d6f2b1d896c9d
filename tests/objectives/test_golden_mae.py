"""MAE against the official PyTorch code (facebookresearch/mae at efb2a80), array by array."""

from functools import partial

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import LOSS_ATOL, OUTPUT_ATOL, assert_classifier, assert_gradients, hidden_states

from nepa_jax.models.layers import run_blocks
from nepa_jax.models.masking import num_kept, random_masking
from nepa_jax.models.posemb import sincos_table
from nepa_jax.objectives import mae

PRETRAINING = ["mae_tiny_normpix", "mae_tiny_raw", "mae_tiny_m95"]


def masked(case: golden.Case, model: mae.MAE):
    return random_masking(jnp.asarray(case.arrays["input.noise"]), model.mask_ratio)


@pytest.mark.parametrize("name", PRETRAINING)
def test_masks_match(name):
    case = golden.load_case(name)
    masking = masked(case, case.model())
    np.testing.assert_array_equal(masking.mask, case.arrays["out.mask"])
    np.testing.assert_array_equal(masking.ids_restore, case.arrays["out.ids_restore"])


@pytest.mark.parametrize("name", PRETRAINING)
def test_every_hidden_state_and_prediction_matches(name):
    case = golden.load_case(name)
    model = case.model()
    masking = masked(case, model)
    grid = model.vit.grid(case.images)
    tokens = mae.kept_tokens(model.vit, model.vit.patches(case.images), masking, grid)
    _, states = jax.jit(partial(run_blocks, collect=lambda x: x))(model.vit.blocks, tokens)
    for layer, state in enumerate(states):
        np.testing.assert_allclose(state, case.arrays[f"out.encoder.{layer}"], atol=OUTPUT_ATOL)
    latent = model.vit.norm(states[-1])
    np.testing.assert_allclose(latent, case.arrays["out.latent"], atol=OUTPUT_ATOL)
    decoder = model.decoder
    _, states = jax.jit(partial(run_blocks, collect=lambda x: x))(
        decoder.blocks, decoder.tokens(latent, masking.ids_restore, grid)
    )
    for layer, state in enumerate(states):
        np.testing.assert_allclose(state, case.arrays[f"out.decoder.{layer}"], atol=OUTPUT_ATOL)
    predictions = jax.jit(mae.reconstruct, static_argnames="grid")(
        model, model.vit.patches(case.images), grid, masking
    )
    np.testing.assert_allclose(predictions, case.arrays["out.pred"], atol=OUTPUT_ATOL)


@pytest.mark.parametrize("name", PRETRAINING)
def test_loss_and_gradients_match(name, monkeypatch):
    case = golden.load_case(name)
    noise = jnp.asarray(case.arrays["input.noise"])
    monkeypatch.setattr(mae, "draw_noise", lambda keys, num_patches: noise)
    batch = {"image": case.images, "row": jnp.arange(len(case.images))}
    (loss, _), grads = jax.jit(jax.value_and_grad(mae.loss, has_aux=True))(
        case.model(), None, batch, jax.random.key(0)
    )
    np.testing.assert_allclose(loss, case.arrays["out.loss"], atol=LOSS_ATOL)
    assert_gradients(case, grads)


def test_classifier_matches():
    case = golden.load_case("mae_vit_cls")
    model = case.model()
    states = hidden_states(model, case.images, causal=False)
    for layer, state in enumerate(states[1:]):
        np.testing.assert_allclose(state, case.arrays[f"out.encoder.{layer}"], atol=OUTPUT_ATOL)
    assert_classifier(case, model, "out.features")


@pytest.mark.parametrize(
    "entry", golden.load_case("sincos").meta["entries"], ids=lambda e: e["key"]
)
def test_sincos_tables_match(entry):
    table = sincos_table((entry["grid_size"],) * 2, entry["embed_dim"])
    if entry["cls_token"]:
        table = np.pad(table, ((1, 0), (0, 0)))
    np.testing.assert_allclose(
        table, golden.load_case("sincos").arrays[f"out.f32.{entry['key']}"], atol=1e-6
    )


@pytest.mark.parametrize("row", golden.load_case("sincos").meta["len_keep_table"])
def test_number_of_kept_patches_matches(row):
    assert num_kept(row["num_patches"], row["mask_ratio"]) == row["len_keep"]
