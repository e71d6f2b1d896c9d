"""What the backward pass of a block keeps, by ``run.remat``."""

import contextlib
import io
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.ad_checkpoint import print_saved_residuals

from nepa_jax.models.layers import REMAT_POLICIES, Block, BlockConfig
from nepa_jax.models.rope import rope_table

ROWS = (3, 5)  # images, tokens
CONFIG = BlockConfig(
    embed_dim=8, depth=1, num_heads=2, mlp_ratio=6.0, qk_norm=True, layer_scale_init=1.0
)
QKV, HEADS, WIDTH, HIDDEN = (3, *ROWS, 2, 4), (*ROWS, 2, 4), (*ROWS, 8), (*ROWS, 48)


def kept(remat):
    """Shapes of all arrays of the width of a token or more, the block's input left out."""
    block = jax.eval_shape(lambda: Block(CONFIG, nnx.Rngs(0)))
    rope = rope_table(jnp.zeros((ROWS[1], 2)), CONFIG.head_dim, 100.0)
    run = lambda block, x: block(x, rope, causal=True, images=1, drop=lambda branch, which: branch)  # noqa: E731
    run = jax.checkpoint(run, policy=REMAT_POLICIES[remat])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        print_saved_residuals(run, block, jax.ShapeDtypeStruct(WIDTH, jnp.float32))
    lines = [line for line in said.getvalue().splitlines() if "argument" not in line]
    sides = [re.search(r"\[([\d,]*)\]", line)[1].split(",") for line in lines]
    shapes = [tuple(map(int, filter(None, each))) for each in sides]
    return {shape for shape in shapes if ROWS[0] in shape and shape[-1] > 2}


@pytest.mark.parametrize(
    "remat, wanted",
    [
        ("full", set()),
        ("names", {QKV, HEADS, HIDDEN}),  # with attention's result
        ("dots", {(*ROWS, 3, 2, 4), WIDTH, HIDDEN}),  # with its projection
    ],
)
def test_a_block_keeps_the_products_that_it_says(remat, wanted):
    assert kept(remat) == wanted
