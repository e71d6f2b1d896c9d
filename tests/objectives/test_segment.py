"""Segmentation as an objective: the loss is UPerNet's on the encoder's maps, and its parts are counted right."""

import jax
import jax.numpy as jnp
import masked
import numpy as np
import pytest
import small
from flax import nnx

from nepa_jax.config import load_config, resolve
from nepa_jax.models import upernet
from nepa_jax.objectives import segment
from nepa_jax.objectives.base import encode_vit
from nepa_jax.optim import rate, table


def resolved(method: str = "nepa", **more: str):
    return resolve(small.segmenting(method, "unused", "unused", **more), 24, "cpu")


loss_of, scores_of = jax.jit(segment.loss), jax.jit(segment.window_scores)


def batch_of(count: int = 4, side: int = 16) -> dict[str, jax.Array]:
    masks = np.stack([masked.mask(seed, (side, side)) for seed in range(count)])
    images = np.stack([masked.painted(each, seed) for seed, each in enumerate(masks)])
    masks[:, :3] = 255
    return {"image": jnp.asarray(images), "mask": jnp.asarray(masks), "row": jnp.arange(count)}


@pytest.fixture(scope="module")
def calm():
    """Without any dropping or moving: the loss is a function of the images."""
    config = resolved(
        model__drop_path_rate="0.0", model__rope_rescale="1.0", objective__dropout="0.0"
    )
    return config, segment.init_model(config, nnx.Rngs(0))


def test_the_loss_is_upernets_on_the_encoders_hidden_states(calm):
    config, model = calm
    batch, depth = batch_of(), config.model.depth
    value, aux = loss_of(model, None, batch, jax.random.key(0))
    states = model.vit.hidden_states(batch["image"], causal=False)
    grid = model.vit.config.grid
    maps = [states[k][:, 1:].reshape(4, *grid, -1) for k in segment.tapped(depth)]
    outputs = jax.jit(upernet.UPerNet.__call__)(model.upernet, maps)
    np.testing.assert_allclose(value, upernet.segmentation_loss(outputs, batch["mask"]), rtol=1e-5)
    predicted = np.argmax(upernet.resized(outputs.logits, (16, 16)), axis=-1)
    known = np.asarray(batch["mask"]) != 255
    right = (predicted == np.asarray(batch["mask"]))[known].mean()
    np.testing.assert_allclose(aux.metrics["pixel_accuracy"](), right, rtol=1e-5)


def test_running_moments_follow_the_batches(calm):
    config, model = calm
    extra = segment.init_extra(config, model)
    assert all(np.all(m.mean == 0) and np.all(m.variance == 1) for m in extra.values())
    _, aux = loss_of(model, extra, batch_of(), jax.random.key(0))
    moved = segment.after_update(extra, model, aux, jnp.zeros((), jnp.int32))
    assert moved.keys() == extra.keys() == aux.carry.keys()
    for name, seen in aux.carry.items():
        np.testing.assert_allclose(moved[name].mean, 0.1 * seen.mean, rtol=1e-5)
        np.testing.assert_allclose(moved[name].variance, 0.9 + 0.1 * seen.variance, rtol=1e-5)
    scores = [scores_of(model, each, batch_of()["image"]) for each in (extra, moved)]
    assert scores[0].shape == (4, 16, 16, 3) and not np.allclose(*scores)


def test_an_image_is_tested_alone_whatever_the_batch(calm):
    config, model = calm
    extra, images = segment.init_extra(config, model), batch_of()["image"]
    found = scores_of(model, extra, images)
    among_others = scores_of(model, extra, jnp.concatenate([255 - images[:3], images[3:]]))
    np.testing.assert_allclose(among_others[3], found[3], atol=1e-5)
    assert not np.allclose(among_others[0], found[0], atol=1e-2)


def test_dropout_and_drop_path_are_of_training_alone():
    config = resolved()
    model = segment.init_model(config, nnx.Rngs(0))
    values = {float(loss_of(model, None, batch_of(), jax.random.key(seed))[0]) for seed in range(3)}
    assert len(values) == 3
    features = segment.encode(model, batch_of()["image"])
    again = encode_vit(model.vit, batch_of()["image"], -1, causal=False)
    np.testing.assert_array_equal(features.patches, again.patches)


@pytest.mark.parametrize(
    ("depth", "blocks"), [(12, (4, 6, 8, 12)), (24, (8, 12, 16, 24)), (2, (1, 1, 1, 2))]
)
def test_the_neck_stands_on_the_blocks_of_the_released_recipes(depth, blocks):
    assert segment.tapped(depth) == blocks


def test_multiply_adds_are_those_that_xla_counts():
    config = upernet.UPerNetConfig(embed_dim=32, num_classes=7, channels=48, aux_channels=24)
    model, grid = upernet.UPerNet(config, nnx.Rngs(0)), (16, 16)
    maps = [jnp.zeros((1, *grid, 32))] * 4
    lowered = jax.jit(lambda m, x: m(x)[:2]).lower(model, maps)
    counted = lowered.cost_analysis()["flops"]
    # XLA leaves out what falls on the padding of 3 x 3 convolutions, and counts norms and resizing.
    assert counted == pytest.approx(2 * segment.upernet_macs(config, grid), rel=0.08)


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_layer_decay_puts_every_parameter_in_one_group(method):
    config = resolved(method)
    shapes = jax.eval_shape(lambda: segment.init_model(config, nnx.Rngs(0)))
    rows = table(config, shapes)
    assert sum(row.parameters for row in rows) == segment.describe(config).parameters
    rates = {row.place: row.peak_lr for row in rows}
    lr, decay = config.optim.lr, config.optim.layer_decay
    wanted = {"head": 0, "block 2": 1, "block 1": 2, "embeddings": 3, "patch_embed": 3}
    assert rates == pytest.approx({place: lr * decay**power for place, power in wanted.items()})
    heads = {name for row in rows if row.place == "head" for name in row.names}
    assert all(name.startswith("upernet/") for name in heads)
    undecayed = {name for row in rows if not row.weight_decay for name in row.names}
    assert "upernet/head/bottleneck/norm/scale" in undecayed and "vit/cls_token" in undecayed


def test_the_rate_rises_and_falls_in_straight_lines():
    """mmsegmentation 1.x: LinearLR over 1,500 iterations, then PolyLR of power 1 to 0."""
    found = load_config("configs/segment.py:mae,B/16")
    found = resolve(found, 20_210, "cpu")
    top = rate(found, "head")
    steps = np.array([0, 750, 1500, 80_750, 160_000])
    np.testing.assert_allclose(
        [float(top(step)) for step in steps], [0, 5e-5, 1e-4, 5e-5, 0], atol=1e-10
    )


def test_masks_and_square_windows_are_asked_for():
    config = resolved()
    with config.unlocked():
        config.data.masks = False
        config.model.image_size = (16, 32)
        config.objective.dropout = 1.5
    told = "; ".join(segment.problems(config))
    for part in ("data.masks = False", "model.image_size = (16, 32)", "objective.dropout = 1.5"):
        assert part in told
