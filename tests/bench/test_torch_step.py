"""PyTorch's side of `bench step --against=torch` is the same step: losses, update by update; and what it refuses."""

from functools import partial

import jax
import numpy as np
import pytest
import small

from nepa_jax.base.errors import UserError
from nepa_jax.base.keys import named_key
from nepa_jax.bench import guard
from nepa_jax.bench import step as bench
from nepa_jax.bench.torch_step import OURS, Sides, check_comparable, compared, export_weights
from nepa_jax.export.parity import normalised
from nepa_jax.mesh import make_mesh, put_batch
from nepa_jax.objectives.base import image_keys, load_objective
from nepa_jax.objectives.mae import draw_noise

STEPS = 3
# One learning rate, high enough to show; no randomness but MAE's masks, which both sides are given.
ALIKE = dict(
    data__batch_size="16",
    model__drop_path_rate="0.0", optim__base_lr="none", optim__lr="0.01", optim__weight_decay="0.5",
    optim__clip_norm="0.1", schedule__warmup_steps="0", schedule__total_steps="1000000",
)  # fmt: skip
CASES = {
    "nepa": dict(model__rope_rescale="1.0", optim__accum_steps="2"),
    "mae": dict(model__layer_scale_init="none"),
}


def config(method: str, **more: str):
    return small.config(method, **(ALIKE | CASES[method] | more))


@pytest.mark.parametrize("method", CASES)
def test_pytorch_computes_the_same_losses_through_some_updates(torch, method, tmp_path):
    pytest.importorskip("transformers")
    from nepa_jax.export.torch_model.training import Training

    run = small.resolved(method, **(ALIKE | CASES[method]))
    mesh, objective = make_mesh(run), load_objective(run.objective.name)
    state, update = small.started(run, objective, mesh)
    folder, images = export_weights(run, state.model, tmp_path), small.images(16)
    pixels = torch.from_numpy(normalised(images, run.model))
    theirs = Training(folder, run, pixels, "cpu")
    batch = put_batch({"image": images, "row": np.arange(16, dtype=np.int32)}, mesh)
    for step in range(STEPS):
        forward = theirs.model
        if method == "mae":
            key = jax.random.fold_in(named_key(jax.random.key(run.run.seed), "step"), step)
            noise = draw_noise(image_keys(key, batch, "mask"), 16)
            forward = partial(forward, noise=torch.from_numpy(np.array(noise)))
        loss = float(theirs.step(forward))
        state, metrics = update(state, batch)
        assert loss == pytest.approx(float(metrics["loss"]), abs=1e-5), step
    followed = sum(float(p.square().sum()) for p in theirs.average)
    ours = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(state.ema))
    if method == "nepa":  # of MAE's weights there the fixed tables are some
        assert followed == pytest.approx(ours, rel=1e-4)


def test_the_ratio_is_of_our_time_to_theirs_in_the_same_round():
    rounds = [{OURS: 1.0, "eager": 2.0}, {OURS: 3.0, "eager": 2.0}, {OURS: 2.2, "eager": 2.0}]
    assert compared(rounds) == {"torch_eager_step_s": 2.0, "over_torch_eager": pytest.approx(1.1)}
    assert compared([{OURS: 1.0}]) == {}


def test_sides_take_turns_and_the_figures_stand_beside_ours(monkeypatch):
    for name, value in dict(ROUNDS=1, SECONDS_PER_ROUND=0.0, REST_S=0.0).items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(guard, "SIDES", {"cpu": 128})
    monkeypatch.setattr(guard, "many_axes", lambda program: "not tried")
    called = []
    eager = lambda seconds: called.append("eager") or 100.0  # noqa: E731
    words = {"torch": "2.13", "torch_compiled": "none: no compiler"}
    monkeypatch.setattr(bench, "torch_sides", lambda *given: Sides({"eager": eager}, words))
    monkeypatch.setattr(bench, "check_comparable", lambda config: None)
    result = bench.bench_step(small.config("nepa", ""), against_torch=True)
    assert called == ["eager"] * 2 and result["torch_eager_step_s"] == 100.0
    assert result["over_torch_eager"] == pytest.approx(result["step_s"] / 100.0)
    assert result["torch_compiled"] == "none: no compiler"


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        ("nepa", dict(objective__shift="0"), "objective.shift = 0: the official model has 1"),
        ("mae", dict(model__drop_path_rate="0.1"), "the official MAE has none"),
        ("mae", dict(model__layer_scale_init="1.0"), "model.layer_scale_init = 1.0: format 'mae'"),
    ],
)
def test_a_step_that_pytorchs_side_has_not_is_refused(torch, monkeypatch, method, more, said):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with pytest.raises(UserError, match=said):
        check_comparable(config(method, **more))


def test_another_objective_and_a_missing_library_are_refused(torch, monkeypatch):
    other = config("nepa")
    other.objective.name = "nepa_jax.objectives.supervised"
    with pytest.raises(UserError, match="supervised: PyTorch's side has"):
        check_comparable(other)
    monkeypatch.setattr("nepa_jax.bench.torch_step.find_spec", lambda name: None)
    with pytest.raises(UserError, match="torch is not installed; pip install torch"):
        check_comparable(config("nepa"))
