"""Linear and attentive probes, whole: what they make of images, from the training split to the table."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
import small
from flax import nnx

from nepa_jax.base.errors import UserError
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.evals import attentive, linear
from nepa_jax.evals.heads import probe, recipe, train
from nepa_jax.evals.heads.rows import Streamed
from nepa_jax.evals.subject import Subject, subject_of
from nepa_jax.loading import Loaded
from nepa_jax.objectives import nepa

CLASSES = ("red", "green", "blue", "gray")


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    config = small.resolved("nepa")
    return Loaded(nepa.init_model(config, nnx.Rngs(0)), nepa, config)


def picture(label: int, rng: np.random.Generator) -> bytes:
    """Noise in the colour of its class: a line parts them at any layer."""
    pixels = rng.integers(0, 100, (16, 16, 3), np.uint8)
    pixels[..., min(label, 2)] += np.uint8(150 if label < 3 else 0)
    return small.png(pixels)


def write_set(folder, shuffled: bool = False) -> str:
    rng = np.random.default_rng(0)
    for split, count in (("train", 96), ("validation", 48)):
        labels = np.arange(count) % 4
        shown = rng.integers(0, 4, count) if shuffled else labels
        images = [
            (picture(s, rng), int(t), f"{i}.png")
            for i, (s, t) in enumerate(zip(shown, labels, strict=True))
        ]
        prepare_arrays(images, str(folder), split, CLASSES)
    return str(folder)


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> str:
    return write_set(tmp_path_factory.mktemp("colours") / "set")


@pytest.fixture(scope="module")
def subject(loaded, colours) -> Subject:
    return subject_of(loaded, colours)


def at(outcome, **setting):
    """The one row of a setting."""
    rows = [row for row in outcome.rows if setting.items() <= row.items()]
    assert len(rows) == 1
    return rows[0]


# LARS moves by a share of the weights, so that few steps want a large rate.
SHORT = dict(epochs=30, batch_size=16)


@pytest.fixture(scope="module")
def found(subject):
    return linear.evaluate(subject, **SHORT, rates="1,50", augment="none")


def test_what_a_line_parts_is_learned_at_every_layer(found):
    assert [row["layer"] for row in found.by_layer] == [0, 1, 2]
    assert all(row["top1"] == row["top5"] == row["held_out"] == 1.0 for row in found.by_layer)
    assert found.chance == 0.25 and found.number["held_out"] == 1.0


def test_every_layer_and_rate_is_told_at_the_last_epoch_and_at_its_best(found):
    settings = itertools.product((0, 1, 2), (1.0, 50.0))
    for layer, rate in settings:
        last = at(found, layer=layer, rate=rate, which_epoch="last")
        best = at(found, layer=layer, rate=rate, which_epoch="best")
        assert last["epoch"] == 30 and best["epoch"] <= 30
        assert best["top1"] >= last["top1"] and "held_out" not in best
    assert len(found.rows) == 12


def test_the_protocol_says_how_the_heads_were_trained(found):
    told = found.protocol
    assert told["train_images"] + told["held_out_images"] == 96 and told["test_images"] == 48
    assert told["rates_per_256"] == (1.0, 50.0) and told["batch_size"] == 16
    assert told["train_features"].startswith("stored") and told["augment"] == "none"
    assert told["parameters_per_head"] == 33 * 4


def test_one_layer_and_one_rate_leave_nothing_to_choose_and_all_images_to_train_on(loaded, colours):
    subject = subject_of(loaded, colours, layer=-1)
    found = linear.evaluate(subject, epochs=2, rates="0.1", augment="none")
    assert found.protocol["train_images"] == 96 and "held_out" not in found.number
    assert found.protocol["batch_size"] == 64  # of 96, in a multiple that hosts can share
    assert "nothing was chosen" in found.chosen


def test_labels_that_say_nothing_of_the_image_leave_chance(loaded, tmp_path):
    subject = subject_of(loaded, write_set(tmp_path / "set", shuffled=True))
    found = linear.evaluate(subject, **SHORT, rates="1,50", augment="none")
    assert all(row["top1"] < 0.45 for row in found.rows if row["which_epoch"] == "last")


@pytest.mark.parametrize("probe, options", [
    (linear, dict(rates="50", epochs=30)),
    (attentive, dict(rates="50", kind="efficient", epochs=12)),
    (attentive, dict(rates="0.01", kind="vjepa", epochs=4)),
])  # fmt: skip
def test_images_cut_at_random_go_through_the_encoder_in_every_epoch(subject, probe, options):
    found = probe.evaluate(subject, batch_size=16, **options)
    assert found.protocol["train_features"].startswith("images") and found.number["top1"] > 0.9


def test_stored_tokens_are_those_that_stream(subject):
    images = Streamed.of(subject.loaded, "none", subject.layers, probe.side_by_side())
    data, everything = replace(subject.test_data, batch_size=20), np.ones(48, bool)
    batches = [jax.tree.map(np.asarray, rows) for rows in images.in_order(data, everything, None)]
    tokens = np.concatenate([rows.inputs[:, rows.weight > 0] for rows in batches], axis=1)
    labels = np.concatenate([rows.label[rows.weight > 0] for rows in batches])
    stored = subject.test(("none",))
    np.testing.assert_allclose(tokens, np.stack(stored.tokens), atol=1e-5)
    np.testing.assert_array_equal(labels, stored.labels)


def test_heads_on_stored_tokens_say_so(subject):
    found = attentive.evaluate(subject, epochs=2, rates="1", augment="none")
    assert found.protocol["train_features"].startswith("stored")
    assert {row["pool"] for row in found.rows} == {"tokens"}


def grid_of(subject, monkeypatch, augment, devices):
    """The trained heads on so many devices."""
    trained = []

    def keep(*args):
        trained.append(train.train(*args))
        return trained[0]

    mesh = probe.side_by_side()
    some = jax.sharding.Mesh(mesh.devices[:devices], mesh.axis_names, axis_types=mesh.axis_types)
    monkeypatch.setattr(probe, "side_by_side", lambda: some)
    monkeypatch.setattr(probe, "train", keep)
    monkeypatch.setattr(train.Kept, "read", lambda self, grid: (grid, []))
    monkeypatch.setattr(train.Kept, "write", lambda self, *args, **more: None)
    linear.evaluate(subject, epochs=2, batch_size=36, rates="0.1,1", augment=augment)
    return jax.tree.map(np.asarray, trained[0].grid)


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_eight_devices_train_the_heads_of_one(subject, monkeypatch, augment):
    """A batch of 36 does not even part into eight."""
    with monkeypatch.context() as patch:
        one = grid_of(subject, patch, augment, devices=1)
    eight = grid_of(subject, monkeypatch, augment, devices=8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), one, eight)


class Killed(Exception):
    pass


@pytest.mark.parametrize("augment", ["none", "crop"])
def test_killed_and_started_again_it_ends_the_same(subject, monkeypatch, augment):
    options = dict(epochs=3, batch_size=32, rates="0.1,1", augment=augment)
    monkeypatch.setattr(train, "KEEP_EVERY_S", 0.0)
    measure, calls = train.measure, []

    def killing(*args):
        calls.append(args)
        if len(calls) == 2:  # after the second epoch's steps
            raise Killed
        return measure(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "measure", killing)
        with pytest.raises(Killed):
            linear.evaluate(subject, **options)
    again = linear.evaluate(subject, **options)
    monkeypatch.setattr(train.Kept, "read", lambda self, grid: (grid, []))
    assert again == linear.evaluate(subject, **options)


def test_what_was_kept_of_heads_and_is_damaged_is_done_anew(subject):
    options = dict(epochs=2, batch_size=32, rates="0.1,2", augment="none")
    found = linear.evaluate(subject, **options)
    for file in train.private_folder("heads").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert linear.evaluate(subject, **options) == found


@pytest.mark.parametrize("rates", ["", "0.1,", "-1", "0.1,0.1", "much", "nan"])
def test_rates_that_are_none_are_the_users_error(rates):
    with pytest.raises(UserError, match="--rates="):
        recipe.rates_of(rates)


def test_tokens_that_do_not_fit_the_devices_are_told_before_work(subject, monkeypatch):
    monkeypatch.setattr(probe, "device_bytes", lambda: 40_000)
    with pytest.raises(UserError, match=r"--batch-size=96: .*try --batch-size=8, or one --layer"):
        attentive.evaluate(subject)


def test_a_set_without_labels_is_the_users_error(loaded, tmp_path):
    for split in ("train", "validation"):
        images = [(small.png(pixels), None, f"{i}") for i, pixels in enumerate(small.images(8))]
        prepare_arrays(images, str(tmp_path / "set"), split)
    with pytest.raises(UserError, match="no labels"):
        linear.evaluate(subject_of(loaded, str(tmp_path / "set")))
