"""`nepa-jax visualize`, as a user meets it."""

import numpy as np
import pytest
import small
from pictures import assert_picture
from PIL import Image

from nepa_jax.cli import main
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.export.folder import export
from nepa_jax.visualize import gallery, verb


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small NEPA and a small MAE, as runs would leave them."""
    folder = tmp_path_factory.mktemp("runs")
    return {method: small.write_run(folder / method, method) for method in ("nepa", "mae")}


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory):
    """Wide, tall, gray, smaller than a patch, with alpha, of 16 bits: all files of one folder."""
    folder = tmp_path_factory.mktemp("odd")
    draw = np.random.default_rng(0)
    shapes = {"1wide": (20, 60, 3), "2tall": (50, 14, 3), "3gray": (24, 24), "4tiny": (1, 2, 3)}
    shapes |= {"5alpha": (16, 16, 4)}
    for name, shape in shapes.items():
        Image.fromarray(draw.integers(0, 256, shape, np.uint8)).save(folder / f"{name}.png")
    sixteen = draw.integers(0, 65536, (16, 16), np.uint16)
    Image.fromarray(sixteen).save(folder / "6sixteen.png")
    return str(folder)


def told(capsys, *arguments):
    main(["visualize", *arguments])
    return capsys.readouterr()


def mistake(capsys, *arguments):
    """The one line of a command that must fail, without its beginning."""
    with pytest.raises(SystemExit) as stop:
        main(["visualize", *arguments])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("nepa-jax: error: ")
    assert "Traceback" not in error and error.count("\n") == 1
    return error


def test_the_table_of_the_command_line_is_that_of_the_pictures():
    assert list(verb.PICTURES) == list(gallery.KINDS)


def test_all_pictures_of_an_mae_and_what_is_left_out_is_named(runs, dataset, tmp_path, capsys):
    out = tmp_path / "deep" / "pictures"
    found = told(capsys, runs["mae"], f"--data={dataset}", f"--out={out}", "--num-images=1")
    stems = {"reconstructions", "attention-1", "pca", "neighbors"}
    assert {path.name for path in out.iterdir()} == {
        f"{s}.{t}" for s in stems for t in ("png", "pdf")
    }
    for stem in stems:
        assert_picture(out / f"{stem}.png")
        assert (out / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    assert "left out: similarity: weights of the objective mae predict no embeddings" in found.out
    assert "mask ratio 0.95: keeps none of 16 patches" in found.err
    assert f"of {dataset}, split train" in found.out and "(mae, step 5)" in found.out


def test_similarity_of_an_exported_nepa_without_a_data_set(runs, odd_images, tmp_path, capsys):
    exported = tmp_path / "exported"
    export(runs["nepa"], "nepa", str(exported))
    what = "--what=similarity"
    found = told(capsys, str(exported), f"--images={odd_images}", what, "--num-images=2")
    assert_picture(exported / "pictures" / "similarity.png")
    assert "2 images:" in found.out and "1wide.png: 16 x 16 px" in found.out


def test_whole_images_of_any_size_kind_and_aspect(runs, odd_images, tmp_path, capsys):
    images = ("--images", odd_images, "--whole", f"--out={tmp_path}")
    told(capsys, runs["nepa"], *images, "--what=similarity,pca", "--layer=1", "--num-images=2")
    found = told(capsys, runs["mae"], *images, "--what=reconstructions", "--mask-ratios=0.5")
    for picture in ("reconstructions", "similarity", "pca"):
        assert_picture(tmp_path / f"{picture}.png")
    for line in ("1wide.png: 16 x 48 px", "2tall.png: 56 x 16 px", "3gray.png: 16 x 16 px",
                 "4tiny.png: 16 x 32 px", "5alpha.png: 16 x 16 px", "6sixteen.png: 16 x 16 px"):  # fmt: skip
        assert line in found.out


def test_an_encoder_alone_gives_what_it_can_and_says_why_not_more(
    runs, odd_images, tmp_path, capsys
):
    alone = tmp_path / "alone"
    export(runs["mae"], "timm", str(alone), encoder_only=True)
    why = "these weights are an encoder alone, without MAE's decoder"
    images = (f"--images={odd_images}/3gray.png", f"--out={tmp_path / 'out'}")
    assert why in mistake(capsys, str(alone), *images, "--what=reconstructions")
    found = told(capsys, str(alone), *images)
    assert f"left out: reconstructions: {why}" in found.out
    assert "left out: similarity: these weights are an encoder alone" in found.out
    assert "left out: neighbors: there is no set to look in; give --data=DIR" in found.out
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {"attention-1", "pca"}


def test_neighbours_are_those_of_the_encoder_and_never_the_image_itself(runs, tmp_path):
    pixels = small.images(6)
    records = [(small.png(each), None, f"{n}.png") for n, each in enumerate([*pixels, pixels[2]])]
    prepare_arrays(records, str(tmp_path))
    args = verb_arguments(runs["mae"], f"--data={tmp_path}", "--num-images=7", "--layer=1")
    opened, _ = verb.opened(args)
    found, cosines, count = gallery.found_neighbors(opened)
    assert count == 7 and cosines.shape == (7, 6) and (np.diff(cosines) <= 0).all()
    vectors = opened.loaded.encode(np.stack(opened.pixels), layer=1).patches.mean(axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for row, query in enumerate(opened.images):
        names = [each.name for each in found[row]]
        assert query.name not in names and len(set(names)) == 6
        for name, cosine in zip(names, cosines[row], strict=True):
            other = [image.name for image in opened.images].index(name)
            assert cosine == pytest.approx(vectors[row] @ vectors[other], abs=1e-5)
        if query.name in ("2.png", "6.png"):  # the same pixels
            assert names[0] == {"2.png": "6.png", "6.png": "2.png"}[query.name]
            assert cosines[row, 0] == pytest.approx(1.0, abs=1e-5)


def verb_arguments(*arguments):
    from nepa_jax.base.verbs import parse
    from nepa_jax.cli import COMMAND

    return parse(COMMAND, ["visualize", *arguments])


def test_the_held_out_split_is_shown_unless_another_is_asked_for(runs, tmp_path):
    for split in ("train", "test"):
        prepare_arrays(
            [(small.png(small.images(1)[0]), None, f"{split}.png")], str(tmp_path), split
        )
    for given, name in (((), "test.png"), (("--split=train",), "train.png")):
        opened, _ = verb.opened(verb_arguments(runs["mae"], f"--data={tmp_path}", *given))
        assert opened.images[0].name == name


def test_neighbours_are_looked_for_in_the_middle_of_a_causal_encoder(runs, dataset):
    for method, layer in (("nepa", 1), ("mae", 2)):
        opened, _ = verb.opened(verb_arguments(runs[method], f"--data={dataset}"))
        assert gallery.telling_layer(opened) == layer
    asked, _ = verb.opened(verb_arguments(runs["nepa"], f"--data={dataset}", "--layer=-1"))
    assert gallery.telling_layer(asked) == 2


@pytest.mark.trial
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--layer=3"], ["layer 3 does not exist", "-3 … 2"]),
        (["--head=2"], ["--head=2: does not exist; choose 0 … 1"]),
        (["--patch=16"], ["--patch=16", "16 patches; choose 0 … 15"]),
        (["--layer=0", "--what=attention"], ["layer 0 is the embedding", "1 … 2"]),
        (["--what=similarity"], ["similarity cannot be drawn", "mae predict no embeddings"]),
        (["--what=attention,heads"], ["'heads' is unknown", "reconstructions, attention"]),
        (["--mask-ratios=0.5,1"], ["--mask-ratios=0.5,1", "above 0 and below 1"]),
        (["--mask-ratios=most"], ["--mask-ratios=most", "such as"]),
        (["--mask-ratios=0.99", "--what=reconstructions"], ["removes all patches"]),
        (["--image-size=18"], ["--image-size=18", "patch side, 4; try 16"]),
        (["--split=none"], ["no split 'none'", "train"]),
        (["--ema"], ["no average", "--ema"]),
        (["--out=gs://bucket/pictures"], ["gs://bucket/pictures", "mount the bucket"]),
        (["--images", "nowhere.png"], ["nowhere.png does not exist"]),
    ],
)
def test_a_mistake_is_one_line(runs, dataset, capsys, given, parts):
    error = mistake(capsys, runs["mae"], f"--data={dataset}", *given)
    for part in parts:
        assert part in error


def test_places_and_files_that_cannot_be_used_are_one_line(runs, dataset, tmp_path, capsys):
    assert "nowhere" in mistake(capsys, str(tmp_path / "nowhere"), f"--data={dataset}")
    assert "--data is missing" in mistake(capsys, runs["mae"])
    (tmp_path / "file").write_text("")
    error = mistake(capsys, runs["mae"], f"--data={dataset}", f"--out={tmp_path / 'file'}")
    assert "file: cannot be made" in error and "--out=DIR" in error
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(SystemExit):
        main(["visualize", runs["mae"], f"--images={tmp_path / 'bad.png'}"])
    first, last = capsys.readouterr().err.splitlines()
    assert "bad.png: cannot be decoded (not a known image format)" in first
    assert "no image there can be decoded" in last


def test_one_bad_image_among_good_ones_is_named(runs, odd_images, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = (str(tmp_path / "bad.png"), f"{odd_images}/3gray.png")
    opened, _ = verb.opened(verb_arguments(runs["mae"], "--images", *files))
    assert [image.name for image in opened.images] == [files[1]]
    assert "bad.png: cannot be decoded" in capsys.readouterr().err


def test_a_whole_image_of_too_many_patches_is_refused(runs, tmp_path, capsys):
    Image.new("RGB", (4000, 3)).save(tmp_path / "line.png")
    error = mistake(capsys, runs["mae"], f"--images={tmp_path / 'line.png'}", "--whole")
    assert "3 x 4000 px, whole, has 21,332 patches, of 4,096" in error
