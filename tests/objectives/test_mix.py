import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.objectives.mix import Mix, cut_box, mix, smooth_labels
from nepa_jax.step import split_rows

jitted = jax.jit(mix, static_argnums=2)


def batch(size=6):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, 16, 12, 3), dtype=np.uint8)
    return {"image": jnp.asarray(images), "label": jnp.arange(size) % 5}


PAIRED = [0, 1, 2, 5, 4, 3]  # in this order timm, which mirrors the batch, makes our pairs


def partners(rows):
    return np.roll(np.asarray(rows), len(rows) // 2, axis=0)


def shares(labels, first, partner):
    """How much of each label is the example's own, where it and its partner differ."""
    return labels[np.arange(len(first)), first][first != partner]


def run(config, seed=0):
    data = batch()
    images, labels = jitted(data, jax.random.key(seed), config)
    return data, np.asarray(images), np.asarray(labels)


def test_mixup_is_timms(timm):
    import torch
    from timm.data.mixup import Mixup

    data, images, labels = run(Mix(5, cutmix_alpha=0.0, label_smoothing=0.1))
    share = (shares(labels, data["label"], partners(data["label"]))[0] - 0.02) / 0.9
    mixup = Mixup(mixup_alpha=0.8, label_smoothing=0.1, num_classes=5)
    mixup._params_per_batch = lambda: (float(share), False)
    theirs = torch.tensor(np.moveaxis(np.array(data["image"])[PAIRED], 3, 1)).float()
    theirs, targets = mixup(theirs, torch.tensor(np.array(data["label"])[PAIRED]))
    np.testing.assert_allclose(images[PAIRED], np.moveaxis(theirs.numpy(), 1, 3), atol=1e-3)
    np.testing.assert_allclose(labels[PAIRED], targets.numpy(), atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_microbatches_are_mixed_as_the_whole_batch_is(parts, seed):
    data, key = batch(16), jax.random.key(seed)
    microbatches = {name: split_rows(rows, parts) for name, rows in data.items()}
    whole = [split_rows(rows, parts) for rows in jitted(data, key, Mix(5))]
    for part in range(parts):
        found = jitted({name: rows[part] for name, rows in microbatches.items()}, key, Mix(5))
        for one, two in zip(found, whole, strict=True):
            np.testing.assert_array_equal(one, two[part])


@pytest.mark.parametrize("seed", range(4))
def test_cutmix_is_timms(timm, monkeypatch, seed):
    import torch
    from timm.data import mixup as theirs

    key, kept = jax.random.key(seed), 0.37
    inside = np.asarray(cut_box(key, jnp.float32(kept), (16, 12)))
    centres = [
        int(jax.random.randint(k, (), 0, n))
        for k, n in zip(jax.random.split(key), (16, 12), strict=True)
    ]
    monkeypatch.setattr(theirs.np.random, "randint", lambda *_, **__: centres.pop(0))
    (top, bottom, left, right), share = theirs.cutmix_bbox_and_lam((3, 16, 12), kept)
    expected = np.zeros((16, 12), bool)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(inside, expected)
    assert np.isclose(1 - inside.mean(), share)
    assert torch.is_tensor(theirs.mixup_target(torch.arange(4), 5, share))


def test_smoothed_labels_are_timms(timm):
    import torch
    from timm.data.mixup import mixup_target

    labels = jnp.arange(5)
    found = smooth_labels(labels, Mix(5, label_smoothing=0.1))
    expected = mixup_target(torch.arange(5), 5, 1.0, 0.1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_cutmix_pastes_a_box_and_mixes_the_labels_by_its_area():
    data, images, labels = run(Mix(5, mixup_alpha=0.0, label_smoothing=0.0), seed=3)
    own = np.asarray(data["image"], np.float32)
    other = partners(own)
    from_other = np.all(images == other, axis=(0, 3)) & ~np.all(images == own, axis=(0, 3))
    np.testing.assert_array_equal(images, np.where(from_other[:, :, None], other, own))
    share = shares(labels, np.asarray(data["label"]), partners(data["label"]))
    np.testing.assert_allclose(share, 1 - from_other.mean(), atol=1e-6)


def test_labels_sum_to_one_and_images_keep_their_range():
    for seed in range(10):
        _, images, labels = run(Mix(5), seed)
        assert images.min() >= 0 and images.max() <= 255 and images.dtype == np.float32
        np.testing.assert_allclose(labels.sum(1), 1, atol=1e-5)


def test_nothing_on_changes_nothing():
    for config in (Mix(5, 0.0, 0.0, label_smoothing=0.0), Mix(5, prob=0.0, label_smoothing=0.0)):
        data, images, labels = run(config)
        np.testing.assert_array_equal(images, data["image"])
        np.testing.assert_array_equal(labels, np.eye(5)[np.asarray(data["label"])])


def test_both_methods_take_turns():
    config = Mix(5, label_smoothing=0.0, prob=0.8)
    pixels = np.stack([run(config, seed)[1][0] for seed in range(300)])
    data = batch()
    own, other = np.asarray(data["image"], np.float32)[[0, 3]]
    untouched = np.all(pixels == own, axis=(1, 2, 3))
    cut = np.all((pixels == own) | (pixels == other), axis=(1, 2, 3)) & ~untouched
    assert 0.1 < untouched.mean() < 0.32  # a fifth, and cuts of no area
    assert 0.28 < cut.mean() < 0.48


def test_wrong_settings_are_named():
    with pytest.raises(UserError, match=r"mixup_alpha=-1.*; prob=2"):
        Mix(5, mixup_alpha=-1, prob=2)
