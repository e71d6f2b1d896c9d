"""Images that share a row on a TPU: the numbers of images by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from forms import BARS, assert_same_form

from nepa_jax.models import layers, side_by_side
from nepa_jax.models.side_by_side import attend_apart, images_per_row

TOKENS = 5


@pytest.fixture
def tpu(monkeypatch):
    """What is traced is for a TPU; it may still run here."""
    monkeypatch.setattr(side_by_side, "platform", lambda: "tpu")


def qkv(images: int, dtype: str = "float32") -> list[jax.Array]:
    keys = jax.random.split(jax.random.key(0), 3)
    return [jax.random.normal(key, (3, images * TOKENS, 2, 4), dtype) for key in keys]


@pytest.mark.parametrize("dtype", BARS)
def test_it_is_the_attention_of_each_image(dtype):
    def plain(*rows):
        apart = (x.reshape(-1, TOKENS, *x.shape[2:]) for x in rows)
        return jax.nn.dot_product_attention(*apart).reshape(rows[0].shape)

    form = jax.jit(attend_apart, static_argnums=3)
    assert_same_form(lambda *x: form(*x, 2), jax.jit(plain), qkv(2, dtype))


def test_an_image_sees_nothing_of_its_neighbours():
    """To the last bit; and nothing of what is asked of it comes back to them."""
    mine = slice(TOKENS, 2 * TOKENS)

    @jax.jit
    def computed(*x):
        mixed, pull_back = jax.vjp(lambda *x: attend_apart(*x, 4)[:, mine], *x)
        return mixed, pull_back(jnp.sin(mixed))

    here = qkv(4)
    elsewhere = [(3.0 * x[:, ::-1]).at[:, mine].set(x[:, mine]) for x in here]
    mixed, grads = computed(*here)
    other_mixed, other_grads = computed(*elsewhere)
    np.testing.assert_array_equal(mixed, other_mixed)
    for grad, other in zip(grads, other_grads, strict=True):
        np.testing.assert_array_equal(grad, other)
        assert not np.delete(grad, range(TOKENS, 2 * TOKENS), axis=1).any()


@pytest.mark.parametrize(("images", "tokens"), [(2, 50), (3, 50), (4, 65)])  # two, one, four a row
def test_blocks_compute_the_same_with_images_side_by_side(images, tokens, tpu):
    """Drop path too, which goes image by image."""
    config = layers.BlockConfig(embed_dim=8, depth=2, num_heads=2, drop_path_rate=0.5)
    blocks = layers.stack_blocks(config, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (images, tokens, 8))
    keys = jax.random.split(jax.random.key(2), images)

    def loss(blocks, x, shared):
        last, states = layers.run_blocks(
            blocks, x, keys=keys, collect=lambda x: x, side_by_side=shared
        )
        return jnp.sum(jnp.sin(last)), states

    computed = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    found, wanted = (jax.tree.leaves(computed(blocks, x, shared)) for shared in (True, False))
    for f, w in zip(found, wanted, strict=True):
        assert f.shape == w.shape
        np.testing.assert_allclose(f, w, atol=1e-5 * np.abs(w).max())


@pytest.mark.parametrize(
    ("images", "tokens", "wanted"),
    [(16, 50, 2), (16, 65, 4), (6, 65, 1), (16, 128, 1), (3, 50, 1), (1, 50, 1)],
)
def test_as_many_share_a_row_as_fill_tiles_best(images, tokens, wanted, tpu):
    """Two of 50 fill 100 of 128, as four do; two of 65 130 of 256, four 260 of 384."""
    assert images_per_row(images, tokens) == wanted


def test_off_tpus_every_image_has_its_row():
    assert images_per_row(16, 50) == 1


@pytest.mark.parametrize(("batch", "wanted"), [(32, 2), (16, 2), (8, 1), (24, 1), (12, 1)])
def test_those_of_a_row_lie_on_one_device(batch, wanted, tpu):
    """Of eight devices; 12 images do not divide, and lie as the compiler likes."""
    mesh = jax.sharding.AbstractMesh((4, 2, 1), ("data", "fsdp", "tensor"))
    with jax.sharding.use_abstract_mesh(mesh):
        assert images_per_row(batch, 50) == wanted
