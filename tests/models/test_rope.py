"""The training-time changes of the coordinates, as the paper of DINOv3 draws them and NEPA's code does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nepa_jax.models.rope import draw_coords, move_coords, patch_coords

DRAWS = 4000


def drawn(shift: float = 0.0, jitter: float = 1.0, rescale: float = 1.0):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    draw = jax.vmap(lambda key: draw_coords(key, shift, jitter, rescale))(keys)
    return jax.tree.map(np.asarray, draw)


def assert_uniform(values: np.ndarray, bound: float) -> None:
    """Over [-bound, bound], by the largest distance from the straight line (Kolmogorov)."""
    places = (np.sort(values) + bound) / (2 * bound)
    assert np.abs(places - (np.arange(DRAWS) + 0.5) / DRAWS).max() < 1.63 / DRAWS**0.5  # 1 %


@pytest.mark.parametrize("axis", [0, 1])
def test_shift_is_uniform_and_jitter_log_uniform_on_each_axis(axis):
    draw = drawn(shift=0.3, jitter=1.5)
    assert_uniform(draw.shift[:, axis], 0.3)
    assert_uniform(np.log(draw.jitter[:, axis]), np.log(1.5))


def test_rescale_is_log_uniform_and_one_factor():
    draw = drawn(rescale=2.0)
    assert draw.rescale.shape == (DRAWS,)
    assert_uniform(np.log(draw.rescale), np.log(2.0))


def test_axes_and_kinds_are_drawn_independently():
    draw = drawn(shift=0.3, jitter=1.5, rescale=2.0)
    together = np.column_stack([draw.shift, np.log(draw.jitter), np.log(draw.rescale)])
    assert np.abs(np.corrcoef(together.T) - np.eye(5)).max() < 0.06


def test_off_means_unchanged():
    coords = patch_coords((3, 5))
    for seed in range(3):
        draw = draw_coords(jax.random.key(seed), shift=0.0, jitter=1.0, rescale=1.0)
        np.testing.assert_array_equal(move_coords(coords, draw), coords)


def test_a_draw_moves_rows_and_columns_by_their_own_numbers():
    draw = drawn(shift=0.3, jitter=1.5, rescale=2.0)
    first = jax.tree.map(lambda values: jnp.asarray(values[0]), draw)
    moved = np.asarray(move_coords(patch_coords((2, 2)), first))
    for axis, wanted in ((0, moved[:, 0]), (1, moved[:, 1])):
        plain = np.array([-0.5, -0.5, 0.5, 0.5] if axis == 0 else [-0.5, 0.5, -0.5, 0.5])
        factor = draw.jitter[0, axis] * draw.rescale[0]
        np.testing.assert_allclose(wanted, (plain + draw.shift[0, axis]) * factor, rtol=1e-5)
