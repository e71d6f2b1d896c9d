"""What is random in a loss is drawn anew for every step, and where it should be for every image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx

from nepa_jax.models import layers
from nepa_jax.objectives import mae, nepa
from nepa_jax.objectives.base import image_keys

BATCH = {"image": jnp.asarray(small.images(8)), "row": jnp.arange(8)}


@pytest.mark.parametrize(
    ("part", "off"), [("rope_rescale", "1.0"), ("rope_jitter", "1.0"), ("rope_shift", "0.0")]
)
def test_nepa_sees_other_coordinates_at_each_step(part, off):
    """Each of the three changes by itself; with all off, the key changes nothing."""
    all_off = dict(model__rope_rescale="1.0", model__drop_path_rate="0.0")
    for value, is_on in (("1.5", True), (off, False)):
        config = small.resolved("nepa", **(all_off | {f"model__{part}": value}))
        model = nepa.init_model(config, nnx.Rngs(0))
        losses = [
            float(nepa.loss(model, None, BATCH, jax.random.key(seed))[0]) for seed in (0, 0, 1)
        ]
        assert losses[0] == losses[1]
        assert (losses[2] != losses[0]) == is_on


def test_mae_masks_each_image_and_each_step_anew():
    keys = [image_keys(jax.random.key(step), BATCH, "mask") for step in (0, 0, 1)]
    first, again, other = (np.asarray(mae.draw_noise(key, 16)) for key in keys)
    np.testing.assert_array_equal(first, again)
    rows = np.concatenate([first, other])
    assert len(np.unique(rows.argsort(axis=1), axis=0)) == len(rows)  # another order in each


def test_an_image_draws_the_same_wherever_it_lies_in_a_microbatch():
    key, rows = jax.random.key(3), jnp.array([5, 2])
    whole = jax.random.key_data(image_keys(key, BATCH, "drop_path"))
    part = jax.random.key_data(image_keys(key, {"row": rows}, "drop_path"))
    np.testing.assert_array_equal(part, whole[rows])


def test_branches_of_all_images_and_layers_are_dropped_independently(monkeypatch):
    """The rate grows with depth from zero; a block here only notes what it keeps, as a bit each."""

    def note(block, x, rope, causal, images, drop):
        for which in (0, 1):
            x = 2 * x + (drop(jnp.ones_like(x), which) > 0)
        return x

    monkeypatch.setattr(layers.Block, "__call__", note)
    config = layers.BlockConfig(embed_dim=4, depth=3, num_heads=1, drop_path_rate=0.5)
    blocks = layers.stack_blocks(config, nnx.Rngs(0))

    @jax.jit
    @jax.vmap
    def kept(seed: jax.Array) -> jax.Array:
        keys = image_keys(jax.random.key(seed), BATCH, "drop_path")
        return layers.run_blocks(blocks, jnp.zeros((8, 1, 1)), keys=keys)[0]

    notes = np.asarray(kept(jnp.arange(2000))).reshape(2000, 8).astype(int)
    bits = (notes[:, :, None] >> np.arange(5, -1, -1)) & 1  # [steps, images, branches in order]
    rates = bits.mean((0, 1)).reshape(3, 2)
    np.testing.assert_allclose(rates, [[1.0] * 2, [0.75] * 2, [0.5] * 2], atol=0.02)
    random = bits[:, :, 2:].reshape(2000, -1)
    assert np.abs(np.corrcoef(random.T) - np.eye(random.shape[1])).max() < 0.12
