"""Raw pixels as a control of a probe."""

import json
from dataclasses import replace

import numpy as np
import pytest
import small

from nepa_jax.base.errors import UserError
from nepa_jax.cli import main
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.evals import pixels
from nepa_jax.evals.subject import Subject, subject_of
from nepa_jax.loading import load

CLASSES = ("dark", "red")


@pytest.fixture(scope="module")
def made() -> tuple[np.ndarray, np.ndarray]:
    """Images that their colour tells apart."""
    images, labels = small.images(40, 0) // 4, np.arange(40) % 2
    images[labels == 1, :, :, 0] += 180
    return images, labels


@pytest.fixture(scope="module")
def data(tmp_path_factory, made) -> str:
    folder = str(tmp_path_factory.mktemp("data") / "set")
    for split in ("train", "validation"):
        examples = [(small.png(image), int(label), f"{i}.png") for i, (image, label) in enumerate(zip(*made, strict=True))]  # fmt: skip
        prepare_arrays(examples, folder, split, CLASSES)
    return folder


@pytest.fixture(scope="module")
def subject(workdir, data) -> Subject:
    """Of the whole images; a central part of them is what encoders see otherwise."""
    found = subject_of(load(workdir), data, train_images=30)
    return replace(found, data=replace(found.data, crop="none"))


def test_they_are_the_images_in_the_order_of_the_records(subject, made):
    train, test = pixels.Pixels(subject).train(), pixels.Pixels(subject).test()
    assert (len(train), len(test), train.layers) == (30, 40, (0,))
    assert list(test.index) == list(range(40))
    stored = np.sort(np.rint(255 * test.features["pixels"][0]).astype(np.uint8), axis=0)
    assert np.array_equal(stored, np.sort(made[0].reshape(40, -1), axis=0))
    red = test.features["pixels"][0][:, ::3].mean(axis=1) > 0.5
    assert np.array_equal(red, test.labels == 1)


def test_large_images_are_made_small(subject):
    large = replace(subject.data, image_size=(224, 16))
    assert pixels.small(large).image_size == (32, 16)


def test_more_than_the_memory_is_refused(subject, monkeypatch):
    monkeypatch.setattr(pixels, "memory_bytes", lambda: 1000)
    with pytest.raises(UserError, match=r"the pixels of 30 images of train .*--train-images"):
        pixels.Pixels(subject).train()


@pytest.mark.parametrize("probe", ["knn", "logreg"])
def test_their_number_stands_beside_the_encoders(workdir, data, capsys, tmp_path, probe):
    command = ["eval", probe, workdir, f"--data={data}", "--no-untrained", f"--out={tmp_path}"]
    main([*command, "--pixels"])
    assert "; raw pixels give 1.0000" in capsys.readouterr().out
    assert json.loads((tmp_path / f"{probe}.json").read_text())["pixels"]["top1"] == 1.0
