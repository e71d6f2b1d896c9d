"""The batch as it is described is the batch as it comes."""

import jax
import numpy as np
import pytest
import small

from nepa_jax.config import loader_config, resolve
from nepa_jax.data.loader import Loader
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.mesh import make_mesh
from nepa_jax.run.feed import DeviceBatches
from nepa_jax.step import abstract_batch


@pytest.fixture(params=[True, False], ids=["labelled", "unlabelled"])
def labelled(request) -> bool:
    return request.param


@pytest.fixture
def config(labelled, tmp_path):
    images = [
        (small.png(pixels), i % 2 if labelled else None, f"{i}.png")
        for i, pixels in enumerate(small.images(16))
    ]
    prepare_arrays(images, str(tmp_path / "set"), classes=("a", "b") if labelled else ())
    return resolve(small.config("nepa", str(tmp_path / "set"), mesh__fsdp="2"), 16, "cpu")


def test_a_batch_is_what_it_is_described_as(config, labelled):
    mesh, data = make_mesh(config), loader_config(config)
    described = abstract_batch(config, labelled, mesh)
    with Loader(data) as loader, DeviceBatches(loader, mesh) as feed:
        batch = feed.batch(0)
    assert set(batch) == {"image", "row"} | ({"label"} if labelled else set())
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), batch) == (
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), described)
    )


def test_rows_are_the_loaders_and_know_their_places(config, labelled):
    mesh, data = make_mesh(config), loader_config(config)
    with Loader(data) as loader, DeviceBatches(loader, mesh) as feed:
        found = [feed.batch(step) for step in (0, 1, 5, 6)]  # read ahead, and started anew
    with Loader(data) as loader:
        expected = [loader.batch(step) for step in (0, 1, 5, 6)]
    for batch, rows in zip(found, expected, strict=True):
        np.testing.assert_array_equal(batch["row"], np.arange(8))
        for name, values in rows.items():
            np.testing.assert_array_equal(batch[name], values)
        assert rows.keys() == batch.keys() - {"row"}


def test_time_spent_waiting_is_told(config, monkeypatch):
    mesh, data = make_mesh(config), loader_config(config)
    with Loader(data) as loader, DeviceBatches(loader, mesh) as feed:
        assert feed.waited_s == 0.0
        feed.batch(0)
        assert feed.waited_s > 0.0
