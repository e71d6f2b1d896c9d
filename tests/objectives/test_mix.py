"""Mixed images and soft labels, against timm's own and as functions of the step and the row alone."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from hlo import collectives
from safetensors.numpy import load_file

from nepa_jax.base.errors import UserError
from nepa_jax.config import base_config
from nepa_jax.mesh import make_mesh, put_batch
from nepa_jax.objectives import supervised
from nepa_jax.objectives.mix import (
    BOXES,
    Draws,
    Mix,
    blend,
    draw,
    mix,
    partners,
    problems,
    smooth_labels,
    soft_cross_entropy,
)
from nepa_jax.step import gradients, split_rows

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden2"
VIT = supervised.vit_config(base_config())
jitted = jax.jit(mix, static_argnums=(0, 1))

# In this order timm, which mirrors a batch of four, makes our pairs.
PAIRED = np.array([0, 1, 3, 2])


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(
        GOLDEN / f"{name}.safetensors"
    )


def timms_draws(case, options):
    """What timm drew for a batch of four, for each image in our order."""
    drawn = [value for _, value in options["draws in order"]]
    if case in ("elem", "pair"):
        return Draws(*map(jnp.asarray, draws_of_single_images(case, drawn)))
    share = next((value for kind, value in options["draws in order"] if kind == "beta"), 1.0)
    center = [value for kind, value in options["draws in order"] if kind == "randint"]
    each = (drawn[0] < options.get("prob", 1.0), bool(center), share, center or [0, 0])
    return Draws(*(jnp.asarray([value] * 4) for value in each))


def draws_of_single_images(case, drawn):
    """With mode `elem` each image has its own, with `pair` each pair: first those of CutMix, then those
    of mixup, then which of the two it is; a centre for each CutMix."""
    cuts, cutmix, mixup, centers = np.array(drawn[0]), *map(np.array, drawn[1:3]), drawn[4:]
    cuts = np.array(drawn[0]) < 0.5
    share = np.where(cuts, cutmix, mixup)
    center = np.zeros((len(cuts), 2), int)
    center[cuts] = np.reshape(centers, (-1, 2))
    own = [0, 1, 1, 0] if case == "pair" else [0, 1, 2, 3]
    return [np.array(each)[own][PAIRED] for each in (np.ones_like(cuts), cuts, share, center)]


@pytest.mark.parametrize("version", ["timm032", "timm1031"])
def test_mixup_and_cutmix_are_timms(version):
    """Every case and mode of both versions, the boxes of which differ."""
    meta, arrays = golden(f"mixup_{version}")
    images = jnp.asarray(arrays["input.x"].transpose(0, 2, 3, 1)[PAIRED])
    box = {"timm032": "timm-0.3.2", "timm1031": "timm-1.0.31"}[version]
    for case, options in meta["config"].items():
        labels = arrays["input.labels"][PAIRED]
        targets = smooth_labels(
            jnp.asarray(labels), Mix(7, label_smoothing=options["label_smoothing"])
        )
        found = jax.jit(blend, static_argnums=3)(images, targets, timms_draws(case, options), box)
        wanted = arrays[f"out.{case}.x"].transpose(0, 2, 3, 1), arrays[f"out.{case}.target"]
        np.testing.assert_allclose(found[0], wanted[0][PAIRED], atol=5e-7, err_msg=case)
        if options.get("correct_lam", True):  # no recipe keeps the share that was drawn
            np.testing.assert_allclose(found[1], wanted[1][PAIRED], atol=5e-7, err_msg=case)


def test_the_two_boxes_differ():
    """Of a side of five, the older timm cuts four."""
    draws = Draws(*map(jnp.asarray, ([True], [True], [0.75], [[4, 6]])))
    images = jnp.stack([jnp.zeros((10, 12, 1)), jnp.ones((10, 12, 1))])
    pair = jax.tree.map(lambda each: jnp.repeat(each, 2, axis=0), draws)
    cut = {box: blend(images, jnp.eye(2), pair, box)[0][0, :, :, 0] for box in BOXES}
    assert [int(cut[box].sum()) for box in BOXES] == [4 * 6, 5 * 6]


def test_losses_and_gradients_are_those_of_both_releases():
    for name, cases in (
        (
            "ft_losses",
            dict(ce=0.0, soft="soft", mixed="mixed", **{"smooth0.1": 0.1, "smooth0.3": 0.3}),
        ),
        ("nepa_ft_losses", dict(int=0.0, soft="soft")),
    ):
        meta, arrays = golden(name)
        logits, labels = (jnp.asarray(arrays[f"input.{key}"]) for key in ("logits", "labels"))
        for case, targets in cases.items():
            if isinstance(targets, str):
                soft = jnp.asarray(arrays[f"input.{targets}"])
            else:
                soft = smooth_labels(labels, Mix(meta["config"]["K"], label_smoothing=targets))
            loss, grad = jax.value_and_grad(soft_cross_entropy)(logits, soft)
            np.testing.assert_allclose(loss, arrays[f"out.{case}"], atol=5e-7, err_msg=case)
            wanted = arrays[f"grad.{case}.logits"]
            np.testing.assert_allclose(grad, wanted, atol=1e-6 * np.abs(wanted).max(), err_msg=case)


def test_a_loss_of_half_precision_is_computed_in_single():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 4, (8, 5)), jnp.bfloat16)
    targets = smooth_labels(jnp.arange(8) % 5, Mix(5, label_smoothing=0.1))
    found, wanted = (
        soft_cross_entropy(each, targets) for each in (logits, logits.astype(jnp.float32))
    )
    assert found.dtype == jnp.float32 and found == wanted


# What is drawn.


def batch(size=16, side=(16, 12), channels=3):
    images = np.random.default_rng(0).integers(0, 256, (size, *side, channels), dtype=np.uint8)
    rows = jnp.arange(size)
    return {"image": jnp.asarray(images), "label": rows % 5, "row": rows}


MIXED = Mix(5, mixup=0.8, cutmix=1.0, mixup_group=4, label_smoothing=0.1, erase_prob=0.25)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_microbatches_are_mixed_as_the_whole_batch_is(parts, seed):
    data, key = batch(), jax.random.key(seed)
    microbatches = {name: split_rows(rows, parts) for name, rows in data.items()}
    whole = [split_rows(rows, parts) for rows in jitted(MIXED, VIT, data, key)]
    for part in range(parts):
        rows = {name: rows[part] for name, rows in microbatches.items()}
        for one, two in zip(jitted(MIXED, VIT, rows, key), whole, strict=True):
            np.testing.assert_array_equal(one, two[part])


def test_a_batch_over_eight_devices_is_mixed_as_on_one():
    """A device gets the images of the one half a batch further on alone, once, and waits in no loop."""
    data, key = batch(), jax.random.key(1)
    mesh = make_mesh(small.resolved("mae"))
    spread = put_batch({name: np.asarray(rows) for name, rows in data.items()}, mesh)
    assert len(spread["image"].sharding.device_set) == 8
    for one, two in zip(
        jitted(MIXED, VIT, data, key), jitted(MIXED, VIT, spread, key), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-6)  # of sums that are fused otherwise
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        found = collectives(jitted.lower(MIXED, VIT, spread, key).compile().as_text())
    assert set(found) == {"all-gather", "collective-permute"}, found
    assert found["all-gather"] == [(16,)]  # numbers of groups
    assert sum(len(shape) == 4 for shape in found["collective-permute"]) == 1


def test_images_of_a_group_share_a_draw_and_groups_do_not():
    rows = jnp.arange(32)
    draws = draw(Mix(5, mixup=0.8, cutmix=1.0, mixup_group=8), jax.random.key(0), rows, (64, 64))
    for each in draws[2:]:
        each = np.asarray(each)
        np.testing.assert_array_equal(each, partners(each))
        groups = each[:16].reshape(4, 4, -1)
        np.testing.assert_array_equal(groups, np.broadcast_to(groups[:, :1], groups.shape))
    assert len(np.unique(draws.share)) == 4
    one = draw(Mix(5, mixup=0.8, mixup_group=1 << 20), jax.random.key(0), rows, (64, 64))
    assert len(np.unique(one.share)) == 1


def test_draws_follow_the_settings():
    """Shares of what is mixed and cut, and the Beta distribution of each method."""
    mixing = Mix(5, mixup=0.4, cutmix=2.0, mixup_prob=0.8, mixup_switch_prob=0.3, mixup_group=2)
    draws = jax.tree.map(np.asarray, draw(mixing, jax.random.key(0), jnp.arange(8192), (7, 9)))
    assert abs(draws.mixes.mean() - 0.8) < 0.03 and abs(draws.cuts.mean() - 0.3) < 0.03
    for cuts, alpha in ((False, 0.4), (True, 2.0)):
        share = draws.share[draws.cuts == cuts]
        assert abs(share.mean() - 0.5) < 0.03
        assert abs(share.var() - 1 / (4 * (2 * alpha + 1))) < 0.01  # of Beta(alpha, alpha)
    assert draws.center.min() == 0 and draws.center.max(0).tolist() == [6, 8]
    assert Mix(5, mixup=0.8).cutmix_share == 0 and Mix(5, cutmix=1.0).cutmix_share == 1


def test_another_step_draws_anew():
    first, again, other = (jitted(MIXED, VIT, batch(), jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first[0], again[0])
    assert np.any(first[1] != other[1])


def test_labels_sum_to_one_and_images_lie_between_their_two():
    for seed in range(5):
        data = batch()
        images, targets = jitted(Mix(5, mixup=0.8, cutmix=1.0), VIT, data, jax.random.key(seed))
        own = np.asarray(data["image"], np.float32)
        other = np.asarray(partners(own))
        assert images.dtype == jnp.float32
        assert np.all(images >= np.minimum(own, other) - 1e-3)
        assert np.all(images <= np.maximum(own, other) + 1e-3)
        np.testing.assert_allclose(targets.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("mixing", [Mix(5), Mix(5, mixup=0.8, cutmix=1.0, mixup_prob=0.0)])
def test_nothing_on_changes_nothing(mixing):
    data = batch(7)  # no pairs are needed
    images, targets = jitted(mixing, VIT, data, jax.random.key(0))
    assert images.dtype == jnp.uint8
    np.testing.assert_array_equal(images, data["image"])
    np.testing.assert_array_equal(targets, np.eye(5)[np.asarray(data["label"])])


@pytest.mark.parametrize(("side", "channels"), [((1, 1), 3), ((1, 9), 1), ((2, 3), 1)])
def test_tiny_and_gray_images_are_mixed_and_erased(side, channels):
    vit = replace(VIT, pixel_mean=(0.5,) * channels, pixel_std=(0.5,) * channels)
    data = batch(8, side, channels)
    images, targets = jitted(MIXED, vit, data, jax.random.key(0))
    assert images.shape == data["image"].shape and np.all(np.isfinite(images))
    np.testing.assert_allclose(targets.sum(1), 1, atol=1e-5)


def test_an_image_without_a_partner_is_told():
    with pytest.raises(UserError, match="a batch of 7 images cannot be mixed in pairs"):
        mix(MIXED, VIT, batch(7), jax.random.key(0))


# As a part of fine-tuning.


def classifying(**changes):
    config = small.resolved("mae", **changes)
    with config.unlocked(), config.ignore_type():
        config.objective = supervised.DEFAULTS | dict(name=supervised.__name__, num_classes=5)
        config.objective.update(
            mixup=0.8, cutmix=1.0, label_smoothing=0.1, erase_prob=0.25, mixup_group=4
        )
    return config


def test_accumulation_gives_the_gradients_of_the_whole_batch():
    config = classifying()
    model = supervised.init_model(config, nnx.Rngs(0))
    kernel = jax.random.normal(jax.random.key(9), model.head.kernel.shape)
    model.head.kernel[...] = kernel  # zero at first: nothing would reach the encoder
    data, key = batch(16, (16, 16)), jax.random.key(2)

    state = SimpleNamespace(model=model, extra=None)
    found = {
        parts: jax.jit(lambda data, parts=parts: gradients(supervised, state, data, key, parts))(
            data
        )
        for parts in (1, 4)
    }
    (loss, _, whole), (loss_of_parts, _, parts) = found[1], found[4]
    np.testing.assert_allclose(loss, loss_of_parts, atol=1e-6)
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        scale = max(np.abs(one).max(), 1e-6)
        np.testing.assert_allclose(one / scale, two / scale, atol=1e-6)
    assert np.abs(whole.vit.patch_embed.kernel).max() > 1e-4


def test_the_loss_is_of_mixed_images_and_their_labels():
    config = classifying()
    model = supervised.init_model(config, nnx.Rngs(0))
    model.head.kernel[...] = jax.random.normal(jax.random.key(9), model.head.kernel.shape)
    data, key = batch(16, (16, 16)), jax.random.key(2)

    @jax.jit
    def both(model, data, key):
        images, targets = mix(model.mix, model.vit.config, data, key)
        logits = model(images, supervised.image_keys(key, data, "drop_path"))
        return supervised.loss(model, None, data, key), logits, targets

    (loss, aux), logits, targets = both(model, data, key)
    logits = np.asarray(logits, np.float64)
    wanted = -(np.asarray(targets) * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
    np.testing.assert_allclose(loss, wanted.mean(), rtol=1e-5)
    assert aux.metrics["accuracy"] == np.mean(logits.argmax(1) == np.asarray(targets).argmax(1))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mixup", -0.1, "objective.mixup = -0.1: must be at least 0 and at most 100; try 0.8, or 0 for off"),
        ("cutmix", float("nan"), "objective.cutmix = nan: must be"),
        ("mixup_prob", 1.5, "objective.mixup_prob = 1.5: must be at least 0 and at most 1"),
        ("mixup_switch_prob", -1.0, "objective.mixup_switch_prob = -1.0"),
        ("mixup_group", 3, "objective.mixup_group = 3: .* in pairs, so it must be even; try 4"),
        ("mixup_group", 0, "objective.mixup_group = 0: must be at least 2"),
        ("cutmix_box", "timm", "objective.cutmix_box = timm: not a choice; try timm-0.3.2 or timm-1.0.31"),
        ("label_smoothing", 1.0, "objective.label_smoothing = 1.0: must be at least 0 and below 1"),
        ("erase_prob", 2.0, "objective.erase_prob = 2.0: must be at least 0 and at most 1; try 0.25"),
        ("erase_prob", "often", "objective.erase_prob = often: wrong type"),
        ("smoothing", 0.1, "objective.smoothing = 0.1: there is no such key; did you mean objective.label_smoothing"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line(key, value, words):
    config = classifying()
    with config.unlocked(), config.ignore_type():
        config.objective[key] = value
    (line,) = supervised.problems(config)
    assert re.match(words, line), line


def test_images_that_have_no_partner_in_their_part_are_told():
    config = classifying(data__batch_size="24", optim__accum_steps="4")
    assert problems(config) == []
    (line,) = problems(classifying(data__batch_size="20", optim__accum_steps="4"))
    assert line.startswith(
        "data.batch_size = 20: images are mixed in pairs, in each of optim.accum"
    )
    assert line.endswith("try 16")
    config = classifying(data__batch_size="20", optim__accum_steps="4")
    with config.unlocked():
        config.objective.update(mixup=0.0, cutmix=0.0)
    assert problems(config) == []


def test_a_controls_recipe_may_leave_the_keys_out():
    config = classifying()
    with config.unlocked():
        config.objective = dict(name=supervised.__name__, num_classes=5, pool="mean", causal=False)
    assert supervised.problems(config) == []
    assert supervised.init_model(config, nnx.Rngs(0)).mix == Mix(5)
