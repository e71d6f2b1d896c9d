"""The controls of NEPA's Table 1a (arXiv 2512.16922) as values of the config.

Each is compared with the plain formula, which reads all tokens and cuts predictions and targets out
of the whole sequence.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nepa_jax.base.trees import named_leaves
from nepa_jax.models.layers import run_blocks
from nepa_jax.objectives import nepa


def config_of(kit, **choices):
    config = kit.make_config("nepa_affine")
    config.model.rope_rescale = 1.0
    config.objective = kit.OBJECTIVES["nepa"] | choices
    return config


def plain_loss(model, images, shift, stop_gradient):
    vit = model.vit
    tokens = vit.prepend_class(vit.embed(vit.patches(images)))
    hidden, _ = run_blocks(vit.blocks, tokens, vit.rope(vit.grid(images)), causal=model.causal)
    predictions = vit.norm(hidden)[:, : tokens.shape[1] - shift]
    targets = jax.lax.stop_gradient(tokens[:, shift:]) if stop_gradient else tokens[:, shift:]
    lengths = jnp.linalg.norm(predictions, axis=-1) * jnp.linalg.norm(targets, axis=-1)
    return -jnp.mean(jnp.sum(predictions * targets, axis=-1) / lengths)


@pytest.mark.parametrize(
    ("shift", "stop_gradient", "causal"),
    [(1, False, True), (1, True, False), (0, False, False), (3, True, True)],
)  # fmt: skip
def test_loss_and_gradients_are_those_of_the_plain_formula(kit, shift, stop_gradient, causal):
    config = config_of(kit, shift=shift, stop_gradient=stop_gradient, causal=causal)
    model, images = (
        kit.make_model(config),
        np.random.default_rng(1).integers(0, 256, (3, 12, 12, 3)),
    )
    batch = {"image": jnp.asarray(images, jnp.uint8), "row": jnp.arange(3)}
    (loss, _), grads = jax.jit(jax.value_and_grad(nepa.loss, has_aux=True))(
        model, None, batch, jax.random.key(0)
    )
    wanted, wanted_grads = jax.jit(jax.value_and_grad(plain_loss), static_argnums=(2, 3))(
        model, batch["image"], shift, stop_gradient
    )
    np.testing.assert_allclose(loss, wanted, atol=2e-6)
    theirs = named_leaves(wanted_grads)
    for name, grad in named_leaves(grads).items():
        np.testing.assert_allclose(grad, theirs[name], atol=5e-6, err_msg=name)


@pytest.mark.parametrize(("shift", "problem"), [(36, "36 patches"), (-1, "objective.shift = -1"), (1.5, "wrong type")])  # fmt: skip
def test_a_shift_that_leaves_nothing_to_predict_is_refused(kit, shift, problem):
    (line,) = nepa.problems(config_of(kit, shift=shift))
    assert line.startswith(f"objective.shift = {shift}") and problem in line


@pytest.mark.parametrize(("shift", "causal", "tokens"), [(0, True, 37), (1, True, 36), (2, True, 35), (2, False, 37)])  # fmt: skip
def test_tokens_that_nothing_sees_are_not_counted(kit, shift, causal, tokens):
    assert nepa.describe(config_of(kit, shift=shift, causal=causal)).tokens == tokens
