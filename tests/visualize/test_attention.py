"""Where a patch looks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from pictures import assert_picture

from nepa_jax.objectives.base import load_objective
from nepa_jax.visualize import attention, style

# Causal with rotary positions and q/k norm; full without; causal with a norm that learns.
KINDS = {
    "nepa": dict(),
    "mae": dict(),
    "nepa in bfloat16": dict(run__dtype="bfloat16", run__residual_dtype="bfloat16"),
    "nepa without norm": dict(model__qk_norm="False"),
}


def opened(kind):
    config = small.resolved(kind.split()[0], **KINDS[kind])
    model = load_objective(config.objective.name).init_model(config, nnx.Rngs(0))
    return model.vit, kind.startswith("nepa")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_give_the_models_own_output(kind, image):
    vit, causal = opened(kind)
    tokens = 1 + 4 * 6
    weights = attention.attention_weights(vit, image[None], jnp.arange(tokens), causal)
    assert weights.shape == (2, 1, 2, tokens, tokens)
    tolerance = 2e-2 if "bfloat16" in kind else 2e-6
    for mine, own in zip(*outputs(vit, image[None], weights, causal), strict=True):
        scale = np.abs(own).max()
        np.testing.assert_allclose(mine / scale, own / scale, atol=tolerance)


@partial(jax.jit, static_argnames="causal")
def outputs(vit, images, weights, causal):
    """Of each layer's attention from given weights [depth, B, H, T, T], and from the model itself."""
    states, rope = vit.hidden_states(images, causal=causal), vit.rope(vit.grid(images))
    mine, own = [], []
    for layer in range(vit.config.depth):
        block = jax.tree.map(lambda leaf: leaf[layer], vit.blocks)  # noqa: B023
        normed = block.norm1(states[layer].astype(vit.config.residual_dtype))
        values = block.attn.qkv.parts(normed)[2].astype(jnp.float32)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights[layer], values)
        mine.append(block.attn.out(mixed.astype(vit.config.dtype)).astype(jnp.float32))
        own.append(block.attn(normed, rope, causal, 1, None).astype(jnp.float32))
    return mine, own


@pytest.mark.parametrize("kind", ["nepa", "mae"])
def test_rows_sum_to_one_and_a_causal_query_sees_nothing_behind_it(kind, image):
    vit, causal = opened(kind)
    queries = jnp.array([0, 3, 24])
    weights = np.asarray(attention.attention_weights(vit, image[None], queries, causal))[:, 0]
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-6)
    for place, query in enumerate([0, 3, 24]):
        behind = weights[:, :, place, query + 1 :]
        assert (behind == 0).all() if causal else (behind > 0).all()
        assert (weights[:, :, place, : query + 1] > 0).all()


def test_pictures_of_all_and_of_one_head_are_written(image, tmp_path):
    vit, causal = opened("nepa")
    query = attention.Query(image, 9, "photo")
    made = attention.draw(vit, query, causal)
    assert_picture(style.save(made, tmp_path / "all.png"))
    names = [label.get_text() for label in made.axes[0].get_xticklabels()]
    assert names == ["photo", "mean", "head 0", "head 1"]
    made = attention.draw(vit, query, causal, layers=[2], head=1)
    assert_picture(style.save(made, tmp_path / "one.png"))
    assert [label.get_text() for label in made.axes[0].get_xticklabels()] == ["photo", "head 1"]
    (label,) = (label.get_text() for label in made.axes[0].get_yticklabels())
    weights = attention.attention_weights(vit, image[None], jnp.array([10]), causal)
    assert label == f"layer 2\n{100 * weights[1, 0, 1, 0, 0]:.0f} % on class"


def test_a_map_shows_the_patches_by_the_largest_and_gray_where_nothing_is_seen():
    weights = attention._seen(np.array([[0.5, 0.1, 0.2, 0.2, 0.0]]), patch=2)
    shown = attention._map(weights[0], (2, 2), side=1)
    largest = style.coloured(np.ones((1, 1)), attention.SHARE, 1)[0, 0]
    np.testing.assert_array_equal(shown[0, 1], largest)
    np.testing.assert_array_equal(shown[1], [largest, [style.NOTHING] * 3])
    assert np.any(shown[0, 0] != largest)


def test_the_chosen_patch_is_the_last_with_much_on_it():
    pixels = np.zeros((8, 8, 3), np.uint8)
    for top, left in ((0, 2), (4, 4), (6, 0)):
        pixels[top, left] = 255
    assert attention.choose_patch(pixels, 2) == 12
