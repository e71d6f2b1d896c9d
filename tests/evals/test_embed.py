"""Features of any images: the numbers that ``load(...).encode`` gives, and nothing left out in silence."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import small

from nepa_jax.cli import main
from nepa_jax.loading import load


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes, of two images each."""
    for i, pixels in enumerate(small.images(4, side=16)):
        file = tmp_path / "photos" / ("cat" if i < 2 else "dog") / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(small.png(pixels))
    return tmp_path / "photos"


def embedded(tmp_path: Path, *arguments: object) -> dict[str, np.ndarray]:
    out = tmp_path / "features.npz"
    main(["embed", *map(str, arguments), f"--out={out}"])
    with np.load(out) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("layer", [-1, 1])
def test_the_numbers_are_those_of_encode(workdir, photos, tmp_path, capsys, layer):
    found = embedded(tmp_path, photos, f"--checkpoint={workdir}", f"--layer={layer}")
    files = sorted(photos.rglob("*.png"))
    expected = load(workdir).encode(files, layer).patches.mean(1)
    order = np.argsort([Path(name).name for name in found["names"]])
    np.testing.assert_allclose(found["features"][order], expected, rtol=1e-5, atol=1e-6)
    assert found["labels"][order].tolist() == [0, 0, 1, 1]
    assert found["classes"].tolist() == ["cat", "dog"]
    assert "float32 [4, 32], labels of 2 classes" in capsys.readouterr().out


def test_files_archives_and_prepared_sets_give_the_same(workdir, photos, tmp_path):
    weights = f"--checkpoint={workdir}"
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", photos)
    main(["data", "prepare", str(photos), f"--out={tmp_path / 'set'}"])
    expected = embedded(tmp_path, photos, weights)["features"]
    for source in ([archive], [tmp_path / "set"], sorted(photos.rglob("*.png"))):
        found = embedded(tmp_path, *source, weights)["features"]
        assert np.sort(found, 0) == pytest.approx(np.sort(expected, 0), abs=1e-6)


def test_without_pooling_there_is_a_row_for_each_patch(workdir, photos, tmp_path):
    found = embedded(tmp_path, photos, f"--checkpoint={workdir}", "--pool=none")
    assert found["features"].shape == (4, 16, 32)


@pytest.mark.trial
def test_images_that_cannot_be_read_are_left_out_and_named(workdir, photos, tmp_path, capsys):
    (photos / "cat" / "0.png").write_bytes(b"no image")
    found = embedded(tmp_path, photos, f"--checkpoint={workdir}")
    assert len(found["names"]) == len(found["features"]) == len(found["labels"]) == 3
    assert "left out" in (told := capsys.readouterr().err) and "0.png" in told


@pytest.mark.trial
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere.png"], "does not exist"),
        (["PHOTOS", "PHOTOS"], "is no file"),
        (["PHOTOS", "--layer=9"], "layer"),
        (["PHOTOS", "--pool=max"], "invalid choice"),
        (["PHOTOS", "--out=x.npy"], "ends in .npz"),
        (["PHOTOS", "--out=nowhere/x.npz"], "cannot be written"),
        (["PHOTOS", "--checkpoint=nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(workdir, photos, tmp_path, capsys, arguments, words):
    given = [str(photos) if word == "PHOTOS" else word for word in arguments]
    defaults = {"--checkpoint": workdir, "--out": str(tmp_path / "x.npz")}
    for option, value in defaults.items():
        if not any(word.startswith(f"{option}=") for word in given):
            given.append(f"{option}={value}")
    with pytest.raises(SystemExit) as ended:
        main(["embed", *given])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and len(error.splitlines()) == 1 and words in error
    assert not (tmp_path / "x.npz").exists()
