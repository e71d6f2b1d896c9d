"""UPerNet computes what mmsegmentation's does: maps, scores, losses, gradients, running moments."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.models.upernet import (
    Norms,
    UPerNet,
    UPerNetConfig,
    adaptive_mean,
    pixel_loss,
    segmentation_loss,
    updated,
)

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden2" / "upernet.npz"
CONFIG = UPerNetConfig(embed_dim=12, num_classes=5, channels=8, aux_channels=6)
# By the beginnings of our names; what follows is a convolution and its norm.
THEIRS = {
    "neck.first.": "neck.upsample_4x.0.",
    "neck.norm.": "neck.upsample_4x.1.",
    "neck.second.": "neck.upsample_4x.3.",
    "neck.double.": "neck.upsample_2x.0.",
    "head.pools.": "decode_head.psp_modules.",
    "head.laterals.": "decode_head.lateral_convs.",
    "head.fpn.": "decode_head.fpn_convs.",
    "head.bottleneck.": "decode_head.bottleneck.",
    "head.fpn_bottleneck.": "decode_head.fpn_bottleneck.",
    "classify.": "decode_head.conv_seg.",
    "aux_classify.": "auxiliary_head.conv_seg.",
    "aux.": "auxiliary_head.convs.0.",
}
# Over two values batch norm gives gradients that nearly cancel: those of the reference itself are at
# 9e-4 of the largest entry to its own in float64. A bias in front of a norm has none at all.
BIASES = ("neck.upsample_4x.0.bias", "neck.upsample_4x.3.bias", "neck.upsample_2x.0.bias")
CANCELS = ("decode_head.psp_modules.0.", *BIASES)


def their_name(ours: str) -> str:
    ours = ours.replace("/", ".")
    start = next(start for start in THEIRS if ours.startswith(start))
    rest = ours.removeprefix(start)
    if start == "head.pools.":
        rest = rest.replace(".", ".1.", 1)
    rest = rest.replace("norm.", "bn.").replace("kernel", "weight").replace("scale", "weight")
    return THEIRS[start] + rest


def ours_of(name: str, theirs: np.ndarray, like: jax.Array) -> np.ndarray:
    """PyTorch's [out, in, h, w], or of transposed convolutions [in, out, h, w], as ours."""
    if theirs.ndim == 4:
        theirs = theirs.transpose((0, 2, 3, 1) if name.startswith("neck") else (2, 3, 1, 0))
    assert theirs.shape == like.shape, name
    return theirs


def last(x: np.ndarray) -> jax.Array:
    """[B, C, h, w] -> [B, h, w, C]."""
    return jnp.asarray(x.transpose(0, 2, 3, 1))


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model(golden) -> UPerNet:
    fresh = UPerNet(CONFIG, nnx.Rngs(0))
    leaves = named_leaves(fresh)
    return with_leaves(
        fresh,
        {
            n: jnp.asarray(ours_of(n, golden[f"param.{their_name(n)}"], v))
            for n, v in leaves.items()
        },
    )


@pytest.fixture(scope="module")
def maps(golden) -> list[jax.Array]:
    return [last(golden[f"input.features.{level}"]) for level in range(4)]


@pytest.fixture(scope="module")
def outputs(model, maps):
    return jax.jit(UPerNet.__call__)(model, maps)


def test_every_parameter_has_one_of_theirs_and_the_names_of_its_axes(golden, model):
    named = {their_name(name) for name in named_leaves(model)}
    assert {f"param.{name}" for name in named} == {
        name for name in golden if name.startswith("param.") and "running" not in name
    }
    for _, leaf in nnx.iter_graph(model):
        if isinstance(leaf, nnx.Param):
            assert len(leaf.get_metadata("axes")) == leaf[...].ndim


def test_the_pyramid_and_the_scores(golden, model, maps, outputs):
    for level, found in enumerate(model.neck(maps, Norms(None))):
        if level:  # the largest is seen through the scores
            np.testing.assert_allclose(found, last(golden[f"out.pyramid.{level}"]), atol=2e-6)
    np.testing.assert_allclose(outputs.logits, last(golden["out.logits"]), atol=1e-5)
    np.testing.assert_allclose(outputs.aux_logits, last(golden["out.aux_logits"]), atol=5e-6)


def test_the_losses_with_ignored_pixels(golden, outputs):
    mask = jnp.asarray(golden["input.labels"])
    assert (mask == 255).any()
    main, aux = (pixel_loss(x, mask) for x in (outputs.logits, outputs.aux_logits))
    for found, name in (
        (main.mean_of_all, "loss_decode"), (0.4 * aux.mean_of_all, "loss_aux"),
        (main.mean_of_known, "loss_decode_non_ignored"), (segmentation_loss(outputs, mask), "loss"),
    ):  # fmt: skip
        np.testing.assert_allclose(found, golden[f"out.{name}"].squeeze(), rtol=2e-6, err_msg=name)


def test_the_running_moments_after_a_batch(golden, model, outputs):
    names = {their_name(f"{name}.norm." if name != "neck" else "neck.norm."): name
             for name in model.initial_statistics()}  # fmt: skip

    def stored(prefix):
        return {
            name: tuple(jnp.asarray(golden[f"{prefix}.{theirs}running_{part}"]) for part in ("mean", "var"))
            for theirs, name in names.items()
        }  # fmt: skip

    moved = updated(stored("param"), outputs.seen)
    for name, wanted in stored("final").items():
        np.testing.assert_allclose(moved[name].mean, wanted[0], atol=1e-6, err_msg=name)
        np.testing.assert_allclose(moved[name].variance, wanted[1], rtol=1e-5, err_msg=name)


def test_all_gradients(golden, model, maps):
    mask = jnp.asarray(golden["input.labels"])

    def loss(model, maps):
        return segmentation_loss(model(maps), mask)

    by_model, by_maps = jax.jit(jax.grad(loss, argnums=(0, 1)))(model, maps)
    found = {their_name(n): (n, np.asarray(v)) for n, v in named_leaves(by_model).items()}
    assert {f"grad.{n}" for n in found} == {
        n for n in golden if n.startswith("grad.") and "features" not in n
    }
    for theirs, (ours, grad) in found.items():
        wanted = ours_of(ours, golden[f"grad.{theirs}"], grad)
        atol = 2e-3 if theirs.startswith(CANCELS) else 1e-4  # of the tensor's largest entry
        scale = max(np.abs(wanted).max(), 1e-3 if theirs.startswith(CANCELS) else 1e-6)
        np.testing.assert_allclose(grad / scale, wanted / scale, atol=atol, err_msg=theirs)
    for level, grad in enumerate(by_maps):
        wanted = last(golden[f"grad.features.{level}"])
        np.testing.assert_allclose(grad, wanted, atol=1e-4 * np.abs(wanted).max())


def test_evaluation_takes_the_running_moments_and_images_do_not_meet(model, maps, outputs):
    running = updated(model.initial_statistics(), outputs.seen)
    run = jax.jit(UPerNet.__call__)
    whole, alone = (run(model, [each[:n] for each in maps], running) for n in (2, 1))
    assert not whole.seen
    np.testing.assert_allclose(whole.logits[:1], alone.logits, atol=1e-5)
    assert np.abs(whole.logits - outputs.logits).max() > 1e-2


def test_dropout_drops_channels_before_the_classifiers_by_the_images_keys(model, maps):
    run, keys = jax.jit(UPerNet.__call__), jax.random.split(jax.random.key(0), 2)
    first, again, other = (
        run(model, maps, keys=k).logits
        for k in (keys, keys, jax.random.split(jax.random.key(1), 2))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize(("side", "bins"), [(7, 3), (3, 6), (4, 2), (5, 1)])
def test_bins_overlap_where_they_do_not_divide(side, bins):
    x = np.random.default_rng(0).normal(size=(1, side, side, 2)).astype(np.float32)
    edges = [(i * side // bins, -(-(i + 1) * side // bins)) for i in range(bins)]
    wanted = np.array([[x[0, a:b, c:d].mean(axis=(0, 1)) for c, d in edges] for a, b in edges])
    np.testing.assert_allclose(adaptive_mean(jnp.asarray(x), bins)[0], wanted, atol=1e-6)
