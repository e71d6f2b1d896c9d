import os
import pickle
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.data.loader import Loader, LoaderConfig, iter_epoch
from nepa_jax.data.order import SMALL_SET, Order
from nepa_jax.data.prepare.split import prepare_arrays
from nepa_jax.data.records import open_dataset


@pytest.fixture
def config(prepared):
    return LoaderConfig(prepared, image_size=(16, 12), batch_size=12, seed=3, num_threads=2)


def indices(config, step):
    """The records at the positions of a step, of a set of 50."""
    order, size = Order(50, config.seed, shuffle=True), config.batch_size
    return order.indices(range(step * size, (step + 1) * size))


def told(made):
    """A batch with the records that its rows show."""
    return {**made.batch, "index": made.account.index}


def batches(config, steps, num_hosts=1):
    """The global batches of `steps`, put together from all hosts' rows."""
    loaders = [Loader(config, host, num_hosts) for host in range(num_hosts)]
    parts = [[told(loader.made(step)) for step in steps] for loader in loaders]
    for loader in loaders:
        loader.close()
    return [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


def assert_same(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def damage(path, index):
    """Flips one byte inside the stored image of record `index`."""
    shard = next(name for name in os.listdir(path) if name.endswith(".array_record"))
    file = os.path.join(path, shard)
    with open(file, "rb") as opened:
        data = bytearray(opened.read())
    at = data.index(open_dataset(path)[index].image) + 40
    data[at] ^= 1
    with open(file, "wb") as opened:
        opened.write(data)


def test_the_first_so_many_records_are_a_whole_set(config):
    with Loader(config, first=24) as loader:
        assert loader.num_examples == 24
        epochs = [
            np.concatenate([loader.made(2 * e + s).account.index for s in (0, 1)]) for e in (0, 1)
        ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(24))
    assert (epochs[0] != epochs[1]).any()


def test_shapes_and_dtypes(config):
    with Loader(config, host=1, num_hosts=3) as loader:
        batch = loader.batch(0)
    assert batch["image"].shape == (4, 16, 12, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    assert set(batch) == {"image", "label"}
    assert (loader.num_examples, loader.records.num_classes) == (50, 5)
    assert len(loader.fingerprint) == 64


def test_each_epoch_is_a_permutation_and_no_two_agree(config):
    orders = set()
    for seed in range(10):
        for epoch in range(5):
            order = indices(replace(config, seed=seed, batch_size=50), epoch)
            assert sorted(order) == list(range(50))
            orders.add(tuple(order))
    assert len(orders) == 50


@pytest.mark.parametrize("num_examples", [1, 2, SMALL_SET, SMALL_SET + 1])
def test_orders_of_small_and_large_sets_are_permutations(num_examples):
    order = Order(num_examples, seed=1, shuffle=True)
    second = [order(position) for position in range(num_examples, 2 * num_examples)]
    assert sorted(second) == list(range(num_examples))


def test_positions_are_shuffled_evenly(config):
    orders = np.array([indices(replace(config, batch_size=50), epoch) for epoch in range(400)])
    assert abs(orders.mean(0) - 24.5).max() < 4  # standard error of a mean: 0.72


def test_a_batch_is_the_records_at_its_positions(config):
    records = open_dataset(config.path)
    with Loader(config) as loader:
        for step in (0, 1, 2, 3, 4, 40):  # step 4 spans two epochs
            batch, account = loader.made(step)
            assert account.index.dtype == np.int64 and account.first == 12 * step
            np.testing.assert_array_equal(account.index, indices(config, step))
            labels = [record.label for record in records.read(account.index)]
            np.testing.assert_array_equal(batch["label"], labels)


def test_hosts_threads_and_start_do_not_change_a_batch(config):
    expected = batches(config, range(6))
    for num_hosts in (2, 3, 4):
        assert_same(batches(config, range(6), num_hosts), expected)
    assert_same(batches(replace(config, num_threads=5, read_ahead=5), range(6)), expected)
    assert_same(batches(config, [4, 5, 1, 1, 0]), [expected[k] for k in (4, 5, 1, 1, 0)])
    assert_same(batches(config, [3, 4], 3), expected[3:5])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_processes_do_not_change_a_batch(config, num_workers):
    expected = batches(config, range(3, 9))
    assert_same(batches(replace(config, num_workers=num_workers), range(3, 9)), expected)


def test_each_visit_of_an_example_is_augmented_anew(config):
    with Loader(replace(config, batch_size=50)) as loader:
        first, second = told(loader.made(0)), told(loader.made(1))
    at, again = np.argmin(first["index"]), np.argmin(second["index"])
    assert not np.array_equal(first["image"][at], second["image"][again])


def test_other_seeds_crop_otherwise(config):
    epoch = replace(config, batch_size=50)
    found = [batches(replace(epoch, seed=seed), [0])[0] for seed in (0, 1)]
    first, second = (each["image"][np.argsort(each["index"])] for each in found)
    assert all(np.any(a != b) for a, b in zip(first, second, strict=True))


def test_far_steps_start_at_once(config):
    with Loader(config) as loader:
        start = time.monotonic()
        loader.batch(1_000_000)
        assert time.monotonic() - start < 1


def test_grayscale_and_unlabelled(tmp_path, encode, picture):
    images = [(encode(picture(i).convert("L")), None, f"{i}.png") for i in range(8)]
    prepare_arrays(images, str(tmp_path))
    config = LoaderConfig(str(tmp_path), image_size=(8, 8), channels=1, batch_size=4)
    with Loader(config) as loader:
        batch = loader.batch(0)
    assert batch["image"].shape == (4, 8, 8, 1) and "label" not in batch


def test_a_damaged_record_is_substituted_and_counted(config, tmp_path):
    copy = str(tmp_path / "copy")
    shutil.copytree(config.path, copy)
    damage(copy, 7)
    config = replace(config, path=copy)
    with Loader(config) as loader:
        found = [loader.made(step).account for step in range(4)]
        wanted = np.concatenate([indices(config, step) for step in range(4)])
        assert loader.stats()["data/substitutes"] == (7 in wanted)
    index = np.concatenate([account.index for account in found])
    assert 7 in wanted and 7 not in index
    assert np.sum(index != wanted) == 1
    assert_same(batches(config, range(4), num_hosts=3), batches(config, range(4)))


def test_too_many_bad_records_are_an_error(tmp_path, encode, picture):
    images = [(encode(picture(i)), 0, f"{i}.png") for i in range(40)]
    images[20:] = [(data[:-40], 0, f"cut{name}") for data, _, name in images[20:]]
    prepare_arrays(images, str(tmp_path), classes=["x"])
    config = LoaderConfig(str(tmp_path), image_size=(8, 8), batch_size=8, num_threads=2)
    with Loader(config) as loader, pytest.raises(UserError, match=r"could not be .*cut.*verify"):
        for step in range(10):
            loader.batch(step)
    with Loader(replace(config, max_bad_rate=1.0)) as loader:
        batch = loader.batch(9)
        assert np.all(batch["image"].max((1, 2, 3)) > 0)


def test_records_without_any_substitute_are_an_error(tmp_path, encode, picture):
    images = [(encode(picture(i))[:-40], 0, f"{i}.png") for i in range(4)]
    prepare_arrays(images, str(tmp_path), classes=["x"])
    config = LoaderConfig(str(tmp_path), image_size=(8, 8), batch_size=2, max_bad_rate=1.0)
    with Loader(config) as loader, pytest.raises(UserError, match="verify"):
        loader.batch(0)


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_an_evaluation_pass_sees_every_example_once(config, num_hosts):
    config = replace(config, crop="center", flip=False)
    passes = [list(iter_epoch(config, host, num_hosts)) for host in range(num_hosts)]
    whole = [
        np.concatenate([made.account.index for made in step]) for step in zip(*passes, strict=True)
    ]
    assert len(whole) == 5 and all(len(batch) == 12 for batch in whole)
    np.testing.assert_array_equal(np.concatenate(whole), [*range(50), *[-1] * 10])
    valid = np.concatenate([made.account.valid for p in passes for made in p])
    assert valid.sum() == 50


def test_an_evaluation_pass_marks_bad_examples(config, tmp_path):
    copy = str(tmp_path / "copy")
    shutil.copytree(config.path, copy)
    damage(copy, 7)
    config = replace(config, path=copy, crop="none", flip=False, image_size=(20, 24))
    found = list(iter_epoch(config))
    assert np.flatnonzero(
        ~np.concatenate([made.account.valid for made in found])[:50]
    ).tolist() == [7]


def test_without_augmentation_pixels_are_exact(config, picture):
    config = replace(config, crop="none", flip=False, image_size=(20, 24))
    records = open_dataset(config.path)
    with Loader(config) as loader:
        batch, account = loader.made(2)
    for image, record in zip(batch["image"], records.read(account.index), strict=True):
        seed = int(record.name.split(".")[0])
        np.testing.assert_array_equal(image, np.asarray(picture(seed)))


def test_a_record_set_pickles_small(config):
    records = open_dataset(config.path)
    records[0]
    data = pickle.dumps(records)
    assert len(data) < 2000
    assert pickle.loads(data)[5] == records[5]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 51}, "more than the 50 examples"),
        ({"image_size": (0, 8)}, r"model.image_size = \(0, 8\)"),
        ({"channels": 4}, "model.in_channels = 4: .* 1 or 3"),
        ({"crop": "mixup"}, "not a choice; try .*center"),
        ({"crop_scale": (0.5, 0.2)}, "data.crop_scale"),
        ({"crop_scale": (0.5,)}, "data.crop_scale"),
        ({"interpolation": "area"}, "data.interpolation = area: .*bicubic"),
        ({"crop": "none"}, "are .20, 24."),
        ({"num_threads": -1, "read_ahead": 0}, "num_threads.*; data.read_ahead"),
        ({"split": "val"}, "no split 'val'"),
    ],
)
def test_wrong_settings_are_named(config, change, words):
    with pytest.raises(UserError, match=words):
        Loader(replace(config, **change))


def test_batches_must_divide_by_the_hosts(config):
    with pytest.raises(UserError, match="multiple of the 5 hosts"):
        Loader(config, 0, 5)


def test_an_evaluation_pass_is_not_random(config):
    with pytest.raises(UserError, match="crop='center'"):
        next(iter_epoch(config))
