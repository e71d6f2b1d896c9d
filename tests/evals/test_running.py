"""Probes on an encoder and on its control."""

from nepa_jax.evals import rank, running
from nepa_jax.evals.subject import subject_of
from nepa_jax.loading import load


def test_the_control_is_the_untrained_encoder(workdir, dataset):
    subject = subject_of(load(workdir), dataset, splits=("train", "train"))
    control = subject.untrained()
    report = running.evaluate("rank", subject, {}, {}, control)
    assert report["by_layer"] == rank.evaluate(subject).by_layer
    assert report["untrained_by_layer"] == rank.evaluate(control).by_layer
    assert report["untrained_by_layer"] != report["by_layer"]


def test_the_control_can_be_left_out(workdir, dataset):
    subject = subject_of(load(workdir), dataset, splits=("train", "train"))
    report = running.evaluate("rank", subject, {}, {}, None)
    assert report["untrained"] is None and report["untrained_rows"] is None
