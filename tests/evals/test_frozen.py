"""Features of prepared sets: in order on any devices and hosts, computed once, and never half."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small
from test_processes import LOCAL, environment

from nepa_jax.base.errors import UserError
from nepa_jax.data.records import RecordSet
from nepa_jax.evals import features, frozen, store
from nepa_jax.evals.encoders import untrained, weights_digest, with_attention
from nepa_jax.evals.subject import subject_of
from nepa_jax.loading import Loaded, load
from nepa_jax.mesh import side_by_side


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nepa_jax" / "features"


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory) -> dict[str, str]:
    """Weights of a small model of each kind, as runs would leave them."""
    return {
        method: small.write_run(tmp_path_factory.mktemp(method), method)
        for method in ("nepa", "mae")
    }


@pytest.fixture(scope="module")
def loaded(workdirs) -> dict[str, Loaded]:
    return {method: load(path) for method, path in workdirs.items()}


def subject(loaded, dataset, **choices):
    return subject_of(loaded, dataset, splits=("train", "train"), **choices)


def pixels(subject) -> np.ndarray:
    """The set as one batch, cut as evaluation cuts it."""
    made = list(features.iter_epoch(replace(subject.data, batch_size=40)))
    return made[0].batch["image"]


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_features_on_eight_devices_are_those_of_one_in_order(loaded, dataset, method):
    assert side_by_side().size == 8
    mine = subject(loaded[method], dataset, pools=("cls", "mean", "last"))
    found = mine.train()
    wanted = loaded[method].encode(pixels(mine), None)
    pools = {"cls": wanted.cls, "mean": wanted.patches.mean(2), "last": wanted.patches[:, :, -1]}
    for pool, values in pools.items():
        assert len(found.features[pool]) == 3
        np.testing.assert_allclose(np.stack(found.features[pool]), values, atol=2e-5)
    assert found.index.tolist() == list(range(40)) and len(found) == 40
    records = mine.train_records.read(range(40))
    assert found.labels.tolist() == [record.label for record in records]
    tokens = mine.train(["none"]).tokens
    np.testing.assert_allclose(np.stack(tokens), wanted.patches, atol=2e-5)


def test_two_processes_store_the_features_of_one(workdirs, loaded, dataset, cache, tmp_path):
    own = subject(loaded["nepa"], dataset).train()
    verb = ["eval", "rank", workdirs["nepa"], f"--data={dataset}", "--test-split=train"]
    command = [sys.executable, str(LOCAL), "--processes=2", "--devices-per-process=1", "--", *verb]
    there = {"XDG_CACHE_HOME": str(tmp_path / "two")}
    subprocess.run(
        [*command, "--no-untrained"], env=environment(1) | there, check=True, timeout=240
    )
    folder = tmp_path / "two" / "nepa_jax" / "features" / own.key
    for layer in own.layers:
        found = np.load(folder / f"mean-{layer:02}.npy")
        np.testing.assert_allclose(found, own.features["mean"][layer], atol=2e-5)
    np.testing.assert_array_equal(np.load(folder / "rows.npz")["index"], own.index)
    assert (Path(workdirs["nepa"]) / "eval" / "rank.json").exists()


def test_attention_is_that_of_training_or_what_is_asked_for(loaded, dataset):
    causal = subject(loaded["nepa"], dataset)
    both = subject(loaded["nepa"], dataset, attention="bidirectional")
    assert (causal.attention, both.attention) == ("causal", "bidirectional")
    ours, theirs = causal.train().features["mean"], both.train().features["mean"]
    np.testing.assert_array_equal(ours[0], theirs[0])  # the embedding attends to nothing
    assert np.abs(ours[2] - theirs[2]).max() > 1e-2
    again = with_attention(both.loaded, "causal")
    np.testing.assert_array_equal(subject(again, dataset).train().features["mean"][2], ours[2])


def test_stored_features_are_read_and_not_made_again(loaded, dataset, monkeypatch, capsys):
    first = subject(loaded["nepa"], dataset).train()
    monkeypatch.setattr(frozen, "encoded", None)
    again = subject(loaded["nepa"], dataset, layer=-1).train()
    assert again.layers == (2,) and again.key == first.key
    np.testing.assert_array_equal(again.features["mean"][0], first.features["mean"][2])
    assert "stored ones are used again" in capsys.readouterr().out


def test_another_layer_or_pooling_is_added_to_what_is_there(loaded, dataset, cache):
    mine = subject(loaded["nepa"], dataset, layer=1)
    key = mine.train().key
    mine.train(["last"])
    names = {file.name for file in (cache / key).iterdir()}
    assert names == {"rows.npz", "mean-01.npy", "last-01.npy"}


def test_whatever_decides_the_features_is_in_their_key(loaded, dataset):
    mine = subject(loaded["nepa"], dataset)
    others = [
        subject(loaded["mae"], dataset),
        mine.untrained(),
        subject(loaded["nepa"], dataset, attention="bidirectional"),
        subject(loaded["nepa"], dataset, image_size=20),
        subject(loaded["nepa"], dataset, train_images=39),
    ]
    keys = [
        frozen.key_of(each.loaded, each.data, each.train_records, each.train_images or 40)
        for each in (mine, *others)
    ]
    assert len(set(keys)) == len(keys)


def test_a_subset_touches_only_its_records(loaded, dataset, monkeypatch):
    read, get = set(), RecordSet.__getitem__
    monkeypatch.setattr(RecordSet, "__getitem__", lambda s, i: read.add(i) or get(s, i))
    whole = subject(loaded["nepa"], dataset)
    part = replace(whole, train_images=11).train()
    assert read == set(range(11)) and part.index.tolist() == list(range(11))
    np.testing.assert_allclose(
        part.features["mean"][2], whole.train().features["mean"][2][:11], atol=2e-5
    )


class Killed(BaseException):
    pass


def test_what_a_killed_pass_leaves_is_not_taken_for_features(loaded, dataset, cache, monkeypatch):
    mine = subject(loaded["nepa"], dataset)
    whole = mine.train()
    for file in (cache / whole.key).iterdir():
        file.unlink()

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", killed)
        mine.train()
    with monkeypatch.context() as patch, pytest.raises(Killed):  # after one of four files
        replaced, moves = Path.replace, []
        patch.setattr(
            Path, "replace", lambda *a: moves.append(a) or (replaced(*a) if len(moves) < 2 else killed())
        )  # fmt: skip
        mine.train()
    (cache / whole.key / "mean-01.npy").write_bytes(b"half")
    again = mine.train()
    for ours, theirs in zip(again.features["mean"], whole.features["mean"], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [folder.name for folder in cache.iterdir()] == [whole.key]


def test_the_oldest_are_dropped_above_the_limit(loaded, dataset, cache, monkeypatch, capsys):
    mine = subject(loaded["nepa"], dataset, layer=1)
    first = mine.train()
    size = sum(file.stat().st_size for file in (cache / first.key).iterdir())
    monkeypatch.setenv(store.LIMIT, str(1.5 * size / 2**30))
    second = mine.untrained().train()
    assert [folder.name for folder in cache.iterdir()] == [second.key]
    assert "dropped" in capsys.readouterr().out
    assert first.features["mean"][0].shape == (40, 32)  # stays readable for who has it open


@pytest.mark.trial
def test_mistakes_are_told_before_anything_is_encoded(loaded, dataset, monkeypatch):
    monkeypatch.setattr(frozen, "encoded", None)
    nepa, mae = loaded["nepa"], loaded["mae"]
    wrong = [
        (nepa, dict(layer=7), "layer 7 does not exist; choose -3 … 2"),
        (nepa, dict(image_size=18), "multiples of the patch side, 4"),
        (mae, dict(attention="causal"), "no causal attention"),
    ]
    for owner, choices, words in wrong:
        with pytest.raises(UserError, match=words):
            subject(owner, dataset, **choices)
    with pytest.raises(UserError, match="no split 'test'"):
        subject_of(nepa, dataset, splits=("train", "test"))
    monkeypatch.setenv(store.LIMIT, "1e-9")
    with pytest.raises(UserError, match="choose one --layer"):
        subject(nepa, dataset).train()
    monkeypatch.setenv(store.LIMIT, "much")
    with pytest.raises(UserError, match="give the GiB"):
        subject(nepa, dataset).train()


def test_the_control_has_the_same_shapes_and_other_weights(loaded):
    fresh = untrained(loaded["nepa"])
    assert weights_digest(fresh) != weights_digest(loaded["nepa"])
    assert weights_digest(fresh) == weights_digest(untrained(loaded["nepa"]))
