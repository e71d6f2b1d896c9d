"""Fine-tuning against both released codes: twenty steps of each recipe, losses, folding, resizing."""

from types import SimpleNamespace

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from nepa_jax import step
from nepa_jax.base.trees import named_leaves, with_leaves
from nepa_jax.config import base_config
from nepa_jax.formats.fold import folded
from nepa_jax.mesh import make_mesh, put_batch
from nepa_jax.models.posemb import resample
from nepa_jax.objectives import mix, nepa, supervised
from nepa_jax.objectives.base import Aux, abstract_model

RECIPES = {
    "mae_ft20": (
        dict(
            lr=1e-3, b2=0.999, clip_norm=1.0, layer_decay=0.75, layer_decay_offset=1, decay_tokens=False
        ),
        dict(warmup_steps=4, total_steps=20, final_lr=1e-6),
    ),
    "nepa_ft20": (
        dict(
            lr=2e-3, b2=0.999, clip_norm=1.0, layer_decay=0.65, layer_warmup=True, head_lr=1e-3,
            freeze_patch_embed=True, ema_decay=0.9,
        ),
        dict(warmup_steps=4, total_steps=20, final_lr=0.0),
    ),
}  # fmt: skip
PIXELS = dict(pixel_mean=(0.5,) * 3, pixel_std=(0.5,) * 3)
PARAMETER_ATOL, LOSS_ATOL = 1e-5, 1e-5


def mixed_loss(model, extra, batch, key):
    """The loss of images and targets that were mixed before: with the release's own draws."""
    scores = model.head(model.pooled(model.tokens(batch["image"])[0]))
    return mix.soft_cross_entropy(scores, batch["target"]), Aux({})


def run_config(case: golden.Case, name: str) -> ConfigDict:
    optimizer, schedule = RECIPES[name]
    case.meta["config"].setdefault("layer_norm_eps", 1e-6)  # of MAE, which does not say it
    config = golden.case_config(case.meta["config"])
    config.model.update(PIXELS)
    config.optim, config.evals = base_config().optim, base_config().evals
    with config.ignore_type():
        config.optim.update(optimizer)
    config.schedule = ConfigDict(schedule)
    config.run.seed = 0
    config.mesh = dict(data=1, fsdp=1, tensor=1)
    config.data = dict(batch_size=4)
    return config


def mixed_images(case: golden.Case, t: int) -> np.ndarray:
    """float32 [B, H, W, C] in the scale of pixels."""
    arrays = case.arrays
    images = arrays["input.batches_u8"][t].transpose(0, 2, 3, 1).astype(np.float32)
    other, share = images[::-1], np.float32(arrays["input.mix_lam"][t])
    if not arrays["input.mix_is_cut"][t]:
        return share * images + (1 - share) * other
    top, bottom, left, right = arrays["input.mix_box"][t]
    images = images.copy()
    images[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    return images


@pytest.mark.parametrize("name", RECIPES)
def test_twenty_steps_follow_the_released_trajectory(name):
    """Layer decay, warm-up, clip, frozen parameters, decay groups and the average, in the run's own
    update."""
    case = golden.load_case(name, "golden2")
    case.meta["objective"] = "classification"
    config = run_config(case, name)
    objective = SimpleNamespace(init_model=supervised.init_model, loss=mixed_loss)
    mesh = make_mesh(config, jax.devices()[:1])
    state = step.init_state(config, objective)
    state.model = case.model(**PIXELS)
    update = step.make_update(config, objective, step.abstract_state(config, objective, mesh))
    for t, loss in enumerate(case.arrays["out.losses"]):
        batch = {"image": mixed_images(case, t), "target": case.arrays["input.targets"][t]}
        state, metrics = update(state, put_batch(batch, mesh))
        np.testing.assert_allclose(metrics["loss"], loss, atol=LOSS_ATOL, err_msg=f"step {t}")
        norm = case.arrays["out.grad_norms"][t]
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=2e-5, err_msg=f"step {t}")
    for prefix, model in (("final.", state.model), ("ema.", state.ema)):
        found = {} if model is None else case.exported(model)
        for parameter, wanted in case.group(prefix).items():
            ours = found[parameter]
            if parameter.endswith("qkv.bias"):  # the gradient of the keys' third is rounding noise
                ours, wanted = (
                    np.delete(each.reshape(3, -1), 1, axis=0) for each in (ours, wanted)
                )
            np.testing.assert_allclose(
                ours, wanted, atol=PARAMETER_ATOL, err_msg=f"{prefix}{parameter}"
            )


def losses(name: str):
    _, arrays = golden.read_case("golden2", name)
    return arrays, jnp.asarray(arrays["input.logits"]), jnp.asarray(arrays["input.labels"])


def assert_loss(arrays, key, logits, targets):
    value, grad = jax.value_and_grad(mix.soft_cross_entropy)(logits, targets)
    np.testing.assert_allclose(value, arrays[f"out.{key}"], atol=1e-6, err_msg=key)
    np.testing.assert_allclose(grad, arrays[f"grad.{key}.logits"], atol=1e-7, err_msg=key)


def test_losses_of_maes_fine_tuning_match():
    arrays, logits, labels = losses("ft_losses")
    for key, smoothing in (("ce", 0.0), ("smooth0.1", 0.1), ("smooth0.3", 0.3)):
        targets = mix.smooth_labels(labels, mix.Mix(logits.shape[1], label_smoothing=smoothing))
        assert_loss(arrays, key, logits, targets)
    for key in ("soft", "mixed"):
        assert_loss(arrays, key, logits, jnp.asarray(arrays[f"input.{key}"]))


def test_losses_of_nepas_fine_tuning_match():
    arrays, logits, labels = losses("nepa_ft_losses")
    for key in ("int", "int_column"):
        assert_loss(arrays, key, logits, mix.smooth_labels(labels, mix.Mix(logits.shape[1])))
    assert_loss(arrays, "soft", logits, jnp.asarray(arrays["input.soft"]))
    smoothed = 0.9 * arrays["input.soft"] + 0.1 / logits.shape[1]
    assert_loss(arrays, "soft_smooth0.1", logits, jnp.asarray(smoothed))


def test_measured_losses_are_those_of_plain_cross_entropy():
    arrays, logits, labels = losses("ft_losses")
    found = supervised.measure(lambda images: logits, {"image": None, "label": labels})
    np.testing.assert_allclose(found["loss"].mean(), arrays["out.ce"], atol=1e-6)
    order = np.argsort(-np.asarray(logits), axis=1)
    place = [list(row).index(label) for row, label in zip(order, labels.tolist(), strict=True)]
    np.testing.assert_array_equal(found["top1"], np.array(place) < 1)
    np.testing.assert_array_equal(found["top5"], np.array(place) < 5)
    np.testing.assert_array_equal(found["prediction"], order[:, 0])


def test_of_equal_scores_the_first_class_counts_as_in_the_prediction():
    labels = jnp.arange(4)
    found = supervised.measure(lambda images: jnp.zeros((4, 8)), {"image": None, "label": labels})
    np.testing.assert_array_equal(found["top1"], [True, False, False, False])
    np.testing.assert_array_equal(found["prediction"], [0, 0, 0, 0])


def test_folded_layer_scale_is_the_released_fold_and_the_same_function():
    case = golden.load_case("nepa_fold", "golden2")
    case.meta["objective"] = "nepa"
    model = case.model()
    config = golden.case_config(case.meta["config"])
    config.model.layer_scale_init = None
    shapes = abstract_model(nepa.init_model, config)
    without = with_leaves(shapes, folded(named_leaves(model)))
    found = case.exported(without)
    for parameter, wanted in case.group("out.folded.").items():
        np.testing.assert_allclose(found[parameter], wanted, atol=1e-7, err_msg=parameter)
    batch = {"image": case.images, "row": jnp.arange(len(case.images))}
    for each, wanted in ((model, "out.loss"), (without, "out.loss_folded")):
        value, _ = jax.jit(nepa.loss)(each, None, batch, jax.random.key(0))
        np.testing.assert_allclose(value, case.arrays[wanted], atol=1e-6)


@pytest.mark.parametrize("key", ["down", "up", "up1"])
@pytest.mark.parametrize(
    ("rule", "theirs"),
    [("bicubic", "mae"), ("bicubic", "timm_no_antialias"), ("bicubic_antialias", "timm_antialias")],
)
def test_position_tables_are_resized_as_their_libraries_do(key, rule, theirs):
    meta, arrays = golden.read_case("golden2", "pos_resize")
    old, new = (meta["config"][key][name] for name in ("old grid", "new grid"))
    table = arrays[f"input.{key}.pos_embed"][0]
    found = resample(table[1:], (old, old), (new, new), rule)
    wanted = arrays[f"out.{key}.{theirs}"][0]
    np.testing.assert_allclose(found, wanted[1:], atol=2e-6)
    np.testing.assert_array_equal(table[0], wanted[0])
