"""Drop path as both released fine-tuning codes have it, with the draws of NEPA's."""

import jax
import jax.numpy as jnp
import numpy as np
from golden import LOSS_ATOL, OUTPUT_ATOL, assert_gradients, load_case

from nepa_jax.models import layers


def test_drop_path_is_the_released_one(monkeypatch):
    """Rates that rise linearly from 0 in the first layer, a draw for each image and branch, attention
    before MLP, over 1 - rate and after LayerScale: logits, loss, gradients."""
    case = load_case("nepa_drop_path", "golden2")
    model = case.model(drop_path_rate=case.meta["config"]["drop_path_prob"])
    draws = np.zeros((2 * case.meta["config"]["num_hidden_layers"], 4), np.float32)
    draws[2:] = case.arrays["input.drop_draws"].reshape(-1, 4)  # nothing is drawn in layer 0
    # In place of keys: images' numbers, then what was drawn for one in a branch.
    drawn = jnp.asarray(draws)
    monkeypatch.setattr(layers.jax.random, "fold_in", lambda image, branch: drawn[branch, image])
    monkeypatch.setattr(layers.jax.random, "bernoulli", lambda draw, kept: draw >= 1.0 - kept)

    def loss(model, images, labels):
        logits = model(images, jnp.arange(len(images)))
        own = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -jnp.mean(own), logits

    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, logits), grads = grad(model, case.images, jnp.asarray(case.arrays["input.labels"]))
    np.testing.assert_allclose(logits, case.arrays["out.logits"], atol=OUTPUT_ATOL)
    np.testing.assert_allclose(value, case.arrays["out.loss"], atol=LOSS_ATOL)
    assert_gradients(case, grads)
