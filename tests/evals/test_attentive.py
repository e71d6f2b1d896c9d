"""Attentive probes: V-JEPA's to the golden arrays, the efficient one to its definition."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.base.trees import named_leaves
from nepa_jax.evals.attentive import QUERIES, VJEPA, VJEPA_EPS, Efficient, design_of
from nepa_jax.evals.heads import grids
from nepa_jax.models.norms import Affine, normalize

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden2"
ATOL = 1e-5
BLOCK = "pooler.cross_attention_block."
# Ours and the released code's; matrices are stored the other way round there.
NAMES = {
    "query": "pooler.query_tokens",
    "norm1/scale": f"{BLOCK}norm1.weight", "norm1/bias": f"{BLOCK}norm1.bias",
    "q/kernel": f"{BLOCK}xattn.q.weight", "q/bias": f"{BLOCK}xattn.q.bias",
    "k/kernel": f"{BLOCK}xattn.kv.weight",
    "v/kernel": f"{BLOCK}xattn.kv.weight", "v/bias": f"{BLOCK}xattn.kv.bias",
    "norm2/scale": f"{BLOCK}norm2.weight", "norm2/bias": f"{BLOCK}norm2.bias",
    "fc1/kernel": f"{BLOCK}mlp.fc1.weight", "fc1/bias": f"{BLOCK}mlp.fc1.bias",
    "fc2/kernel": f"{BLOCK}mlp.fc2.weight", "fc2/bias": f"{BLOCK}mlp.fc2.bias",
}  # fmt: skip

pooling = VJEPA(dim=32, num_heads=4)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "attentive_probe.npz"))


def theirs(golden, kind):
    """Parameters or gradients of the released code in our tree and layouts."""
    shapes = jax.eval_shape(pooling.init, jax.random.key(0))
    arrays = {}
    for name, shape in named_leaves(shapes).items():
        array = golden[kind + NAMES[name]]
        if ".kv." in NAMES[name]:
            array = np.split(array, 2)["kv".index(name[0])]
        array = array.T if name.endswith("kernel") else array
        arrays[name] = jnp.asarray(array.reshape(shape.shape))
    tree = jax.tree_util.tree_structure(shapes)
    return jax.tree.unflatten(tree, [arrays[name] for name in named_leaves(shapes)])


def loss(params, tokens, labels):
    scores = pooling(params["pooling"], tokens) @ params["kernel"] + params["bias"]
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels)), scores


def with_classifier(golden, kind):
    return {
        "pooling": theirs(golden, kind),
        "kernel": golden[f"{kind}linear.weight"].T,
        "bias": golden[f"{kind}linear.bias"],
    }


def test_the_block_is_that_of_v_jepa(golden):
    params, tokens = theirs(golden, "param."), golden["input.x"]
    found = {
        "out.norm1": normalize(tokens, Affine(**params["norm1"]), VJEPA_EPS),
        "out.cross_attention": pooling.attention(params, tokens)[:, None],
        "out.cross_block": pooling(params, tokens)[:, None],
    }
    for name, array in found.items():
        np.testing.assert_allclose(array, golden[name], atol=ATOL, err_msg=name)


def test_loss_and_gradients_are_those_of_v_jepa(golden):
    grad = jax.value_and_grad(loss, has_aux=True)
    labels = golden["input.labels"]
    (value, scores), grads = grad(with_classifier(golden, "param."), golden["input.x"], labels)
    np.testing.assert_allclose(scores, golden["out.logits"], atol=ATOL)
    np.testing.assert_allclose(value, golden["out.loss"], atol=ATOL)
    wanted = named_leaves(with_classifier(golden, "grad."))
    for name, leaf in named_leaves(grads).items():
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(leaf / scale, wanted[name] / scale, atol=1e-4, err_msg=name)


def test_a_bias_of_keys_has_no_gradient_and_so_is_left_out(golden):
    keys, values = np.split(golden[f"grad.{BLOCK}xattn.kv.bias"], 2)
    assert np.abs(keys).max() < 1e-6 * np.abs(values).max()


def test_the_efficient_probe_is_keys_as_they_are_and_one_projection_in_parts():
    pooling = Efficient(dim=64)
    params = pooling.init(jax.random.key(0))
    params["query"] *= 30  # so that attention is not flat
    tokens = np.random.default_rng(0).normal(size=(3, 10, 64)).astype(np.float32)
    values = tokens @ params["value"].reshape(64, 64)
    scores = params["query"] @ tokens.swapaxes(1, 2) / 8.0
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    parts = values.reshape(3, 10, QUERIES, 2)
    wanted = np.einsum("bqt,btqe->bqe", weights, parts).reshape(3, 64)
    np.testing.assert_allclose(pooling(params, tokens), wanted, atol=1e-5)


def test_the_efficient_probe_of_vit_b_has_the_papers_count_of_parameters():
    design = design_of("efficient", 768, 12, num_classes=1000, steps=10)
    assert grids.count_parameters(design) == 1_383_400  # the released log of MAE ViT-B


def test_the_efficient_probe_wants_a_width_in_32_parts():
    with pytest.raises(UserError, match="48 is no multiple"):
        Efficient(dim=48)
