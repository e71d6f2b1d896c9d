"""The loader's processes: small, of the same results, and gone when they should be."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

from nepa_jax.base.errors import UserError
from nepa_jax.data import workers
from nepa_jax.data.loader import Loader, LoaderConfig, iter_epoch
from nepa_jax.data.prepare.split import prepare_arrays


@pytest.fixture
def config(prepared):
    return LoaderConfig(prepared, image_size=(16, 12), batch_size=10, num_workers=1, num_threads=1)


def test_they_import_neither_jax_nor_grain():
    code = "import sys, nepa_jax.data.workers; print({'jax', 'grain', 'orbax'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_rows_that_are_not_valid_are_black_in_memory_that_is_used_again(tmp_path, encode, picture):
    images = [(encode(picture(i)), None, f"{i:02d}.png") for i in range(20)]
    images = [(data[: -40 * (i % 3)] or data, *rest) for i, (data, *rest) in enumerate(images)]
    prepare_arrays(images, str(tmp_path))
    config = LoaderConfig(str(tmp_path), image_size=(8, 8), batch_size=3, crop="center", flip=False)
    config = replace(config, max_bad_rate=1.0)
    here, there = (list(iter_epoch(replace(config, num_workers=n))) for n in (0, 1))
    for expected, found in zip(here, there, strict=True):
        np.testing.assert_array_equal(found.batch["image"], expected.batch["image"])
        np.testing.assert_array_equal(found.account.index, expected.account.index)
        assert not np.any(found.batch["image"][~found.account.valid])
    assert 5 < sum(made.account.valid.sum() for made in there) < 15


def test_too_little_shared_memory_is_an_error(config, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda _: usage(1000))
    with Loader(config) as loader, pytest.raises(UserError, match="shm-size"):
        loader.batch(0)


@pytest.mark.trial
@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP", "SIGTERM"])
def test_signals_to_all_processes_are_not_for_them(config, name):
    """A terminal, `timeout` and service managers send to all: more batches may be wanted."""
    with Loader(config) as loader:
        expected = [loader.batch(step) for step in range(2)]
    with Loader(config) as loader:
        found = [loader.batch(0)]
        (worker,) = multiprocessing.active_children()
        # From another process: its parent's own SIGTERM is the one that ends a worker.
        subprocess.run(["sh", "-c", f"kill -{name[3:]} {worker.pid}"], check=True)
        time.sleep(0.2)
        found.append(loader.batch(1))
        assert multiprocessing.active_children() == [worker]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])
    assert not multiprocessing.active_children()


MASKS = """
import multiprocessing.resource_tracker, pathlib, re, signal
if __name__ == "__main__":
    from nepa_jax.data.loader import Loader, LoaderConfig
    with Loader({config!r}) as loader:
        loader.batch(0)
        (worker,) = multiprocessing.active_children()
        tracker = multiprocessing.resource_tracker._resource_tracker
        for pid in ("self", worker.pid, tracker._pid):
            status = pathlib.Path(f"/proc/{{pid}}/status").read_text()
            masks = [int(mask, 16) for mask in re.findall("Sig(?:Blk|Ign):.(.*)", status)]
            held = masks[0] if pid == "self" else masks[0] | masks[1]
            numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
            print(*(bool(held >> (number - 1) & 1) for number in numbers))
"""


@pytest.mark.trial
def test_signals_are_held_off_before_they_have_begun(config, tmp_path):
    """The mask is inherited: a process that still starts, which takes long under load, has it.

    So has the one that would clean up, and would complain if it were started again.
    """
    script = tmp_path / "script.py"
    script.write_text(MASKS.format(config=config))
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    parent, worker, tracker = run.stdout.splitlines()
    assert parent == "False False False"
    assert worker == tracker == "True True True"


@pytest.mark.trial
def test_at_their_parents_word_they_end(config):
    with Loader(config) as loader:
        loader.batch(0)
        (worker,) = multiprocessing.active_children()
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 1
        with pytest.raises(UserError, match="worker process"):
            for step in range(1, 50):
                loader.batch(step)


def test_they_end_with_a_parent_that_is_killed(config, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import multiprocessing, os, signal
if __name__ == "__main__":
    from nepa_jax.data.loader import Loader, LoaderConfig
    loader = Loader({config!r})
    loader.batch(0)
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert run.returncode == -signal.SIGKILL
    worker, deadline = int(run.stdout), time.monotonic() + 30
    while time.monotonic() < deadline and is_running(worker):
        time.sleep(0.1)
    assert not is_running(worker)


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0] != "Z"


def test_the_queue_is_full_when_the_loader_is_faster(config):
    with Loader(replace(config, num_workers=0, read_ahead=3)) as loader:
        for step in range(3):
            loader.batch(step)
            time.sleep(0.5)
        loader.batch(3)
        assert loader.stats()["data/queue"] == 3
