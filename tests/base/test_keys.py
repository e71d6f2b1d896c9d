"""No two purposes of a run share a random key."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import small
from flax import nnx

from nepa_jax.base.keys import named_key
from nepa_jax.mesh import make_mesh
from nepa_jax.models import rope
from nepa_jax.objectives import mae, nepa
from nepa_jax.objectives.base import Aux, image_keys
from nepa_jax.step import abstract_state, init_state, make_update


def numbers(keys: jax.Array) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()]


def test_a_name_gives_the_same_key_everywhere():
    assert numbers(named_key(jax.random.key(7), "step")) == [(620047839, 2027559671)]


def test_keys_of_steps_are_no_keys_of_the_initialisation():
    config = small.resolved("nepa", optim__ema_decay="none")
    seen = []

    def loss(model, extra, batch, key):
        return nepa.loss(model, extra, batch, key)[0], Aux({"key": jax.random.key_data(key)})

    objective = SimpleNamespace(init_model=nepa.init_model, loss=loss)
    mesh = make_mesh(config, jax.devices()[:1])
    update = make_update(config, objective, abstract_state(config, objective, mesh))
    state = init_state(config, objective)
    batch = {"image": jnp.asarray(small.images(8)), "row": jnp.arange(8)}
    for _ in range(4):
        state, metrics = update(state, batch)
        seen += numbers(jax.random.wrap_key_data(metrics["key"]))
    rngs = nnx.Rngs(config.run.seed)
    first = [key for _ in range(64) for key in numbers(rngs.params())]
    assert len({*seen, *first}) == len(seen) + len(first)


def test_keys_within_a_step_are_all_different(monkeypatch):
    """What rows, masks, dropped branches and the change of coordinates draw from."""
    key, seen = jax.random.key(0), []
    draw_coords = rope.draw_coords
    monkeypatch.setattr(
        rope, "draw_coords", lambda key, *rest: seen.append(key) or draw_coords(key, *rest)
    )
    batch = {"image": jnp.asarray(small.images(8)), "row": jnp.arange(8)}
    nepa.loss(nepa.init_model(small.resolved("nepa"), nnx.Rngs(0)), None, batch, key)
    draw_noise = mae.draw_noise
    monkeypatch.setattr(
        mae, "draw_noise", lambda keys, *rest: seen.append(keys) or draw_noise(keys, *rest)
    )
    mae.loss(mae.init_model(small.resolved("mae"), nnx.Rngs(0)), None, batch, key)
    coords, masks = seen
    used = [*numbers(coords), *numbers(jax.random.split(coords, 3)), *numbers(masks)]
    used += numbers(image_keys(key, batch, "drop_path"))
    assert len(set(used)) == 1 + 3 + 8 + 8
