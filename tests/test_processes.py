"""Real processes on this machine: the same run on any number of them, whatever happens to them."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path

import numpy as np
import pytest
import small
from children import free_port

from nepa_jax.run.metrics import read_metrics

chaos = pytest.mark.chaos
TESTS = Path(__file__).parent
LOCAL = TESTS.parent / "launch" / "local.py"
WIDTHS = {
    "nepa": dict(model__num_heads="4"),
    "mae": dict(model__num_heads="4", objective__decoder_num_heads="4"),
}
STEPS = dict(schedule__total_steps="20", data__batch_size="16", checkpoint__every_steps="10")

# Processes with two devices each, and (method, mesh, accum_steps) of every job. What one process
# with eight devices gives for every layout is tested with the mesh.
JOBS = [
    pytest.param(2, [("nepa", dict(fsdp=4), 2), ("mae", dict(fsdp=2, tensor=2), 1)]),
    pytest.param(2, [("nepa", {}, 1), ("mae", dict(tensor=2), 2)], marks=chaos),
    # With four ways of tensor parallelism, processes share their rows.
    pytest.param(4, [("nepa", dict(tensor=4), 2), ("mae", dict(fsdp=8), 1)], marks=chaos),
]


def environment(devices: int) -> dict[str, str]:
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
    return os.environ | {"XLA_FLAGS": flags}


def run_jobs(jobs: list[dict], processes: int, devices: int) -> None:
    """All jobs, one after the other, in the same processes."""
    address = f"localhost:{free_port()}"
    script = [sys.executable, str(TESTS / "processes.py"), dumps(jobs), address, str(processes)]
    running = [
        subprocess.Popen([*script, str(i)], env=environment(devices), stdout=subprocess.DEVNULL)
        for i in range(processes)
    ]
    assert [process.wait(timeout=500) for process in running] == [0] * processes


def losses(workdir: str | Path) -> list[float]:
    rows = read_metrics(Path(workdir) / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["train/loss"] for row in rows]


def job(method: str, data: str, workdir: Path, **changes: object) -> dict:
    texts = {key: str(value) for key, value in changes.items()}
    texts = STEPS | WIDTHS[method] | texts
    return dict(method=method, data=data, workdir=str(workdir), changes=texts)


@pytest.fixture(scope="module")
def alone(dataset, tmp_path_factory) -> dict[str, list[float]]:
    """The losses of one process with one device."""
    folder = tmp_path_factory.mktemp("alone")
    jobs = [job(method, dataset, folder / method) for method in WIDTHS]
    run_jobs(jobs, processes=1, devices=1)
    return {method: losses(folder / method) for method in WIDTHS}


@pytest.mark.parametrize(("processes", "layouts"), JOBS)
def test_every_layout_on_several_processes_gives_the_losses_of_one_device(
    processes, layouts, alone, dataset, tmp_path
):
    jobs = [
        job(
            method, dataset, tmp_path / str(i), optim__accum_steps=accum, log__pictures_every_steps=10,
            **{f"mesh__{axis}": size for axis, size in mesh.items()},
        )
        for i, (method, mesh, accum) in enumerate(layouts)
    ]  # fmt: skip
    run_jobs(jobs, processes, devices=2)
    for i, (method, mesh, accum) in enumerate(layouts):
        found = losses(tmp_path / str(i))
        name = f"{method} {mesh} accum_steps={accum}"
        np.testing.assert_allclose(found, alone[method], rtol=1e-5, atol=1e-6, err_msg=name)
        drawn = sorted(path.name for path in (tmp_path / str(i) / "pictures").iterdir())
        assert drawn == ["step_00000010.png", "step_00000020.png"]


# Chaos

CHAOS = dict(schedule__total_steps="400", data__batch_size="16", checkpoint__every_steps="7")
ROUNDS = 10


@chaos
def test_a_run_that_is_killed_and_moved_again_and_again_has_the_curve_of_a_quiet_one(
    dataset, tmp_path
):
    """Ten rounds: SIGKILL to one process or SIGTERM to all, then another number of processes."""
    calm, moved = tmp_path / "calm", tmp_path / "moved"
    run_jobs([job("nepa", dataset, calm, **CHAOS)], processes=1, devices=1)
    chance = random.Random(0)
    for _ in range(ROUNDS):
        count, politely = chance.choice([1, 1, 2, 2, 4]), chance.random() < 0.5
        launcher = start_run(dataset, moved, count, grace_s=90 if politely else 2)
        await_steps(launcher, moved, chance.randrange(3, 25))
        if politely:
            launcher.send_signal(signal.SIGTERM)
        elif launcher.poll() is None:
            os.kill(chance.choice(children(launcher.pid)), signal.SIGKILL)
        output, _ = launcher.communicate(timeout=120)
        assert (launcher.returncode == 0) == politely, output
        assert ("preempted: saved step" in output) == politely, output
    process = start_run(dataset, moved, 2, grace_s=2)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert (moved / "DONE").read_text() == "400\n"
    np.testing.assert_allclose(losses(moved), losses(calm), rtol=1e-3, atol=1e-4)


@chaos
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "silent"])
@pytest.mark.parametrize("lost", [0, 1])
def test_when_one_process_is_lost_the_other_ends_within_a_minute(how, lost, dataset, tmp_path):
    """A stopped process keeps its connections open, like a host that is cut off: only its silence tells."""
    with running_pair(dataset, tmp_path) as pair:
        await_steps(pair[0], tmp_path, 3)
        pair[lost].send_signal(how)
        assert pair[1 - lost].wait(timeout=60) != 0


@chaos
def test_a_save_that_fails_on_one_process_ends_both_within_a_minute(dataset, tmp_path):
    """Orbax by itself would wait twenty minutes for the one that cannot write."""
    with running_pair(dataset, tmp_path, mesh__fsdp="2", model__embed_dim="64") as pair:
        await_steps(pair[0], tmp_path, 1)
        resource.prlimit(pair[1].pid, resource.RLIMIT_FSIZE, (4096, 4096))  # as a full disk
        _, error = pair[1].communicate(timeout=60)
        assert pair[1].returncode == 2
        assert "nepa-jax: error: " in error and "a checkpoint cannot be saved" in error
        assert pair[0].wait(timeout=60) != 0


@contextmanager
def running_pair(data: str, workdir: Path, **changes: str) -> Iterator[list[subprocess.Popen]]:
    """Two processes without a launcher, which would end the one when the other does."""
    keys = WIDTHS["nepa"] | CHAOS | dict(schedule__total_steps="100000") | changes
    together = [f"--workdir={workdir}", f"--coordinator=localhost:{free_port()}", "--processes=2"]
    verb = ["pretrain", *small.arguments("nepa", data, **keys), *together]
    pair = [
        subprocess.Popen(
            [sys.executable, "-m", "nepa_jax", *verb, f"--process={i}"], env=environment(1),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        yield pair
    finally:
        for process in pair:
            process.kill()
            process.communicate()


def start_run(data: str, workdir: Path, processes: int, grace_s: int) -> subprocess.Popen:
    arguments = small.arguments("nepa", data, **WIDTHS["nepa"], **CHAOS)
    launcher = [sys.executable, str(LOCAL), f"--processes={processes}", f"--grace={grace_s}"]
    return subprocess.Popen(
        [*launcher, "--devices-per-process=1", "--", "pretrain", *arguments, f"--workdir={workdir}"],
        env=environment(1), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def await_steps(launcher: subprocess.Popen, workdir: Path, count: int) -> None:
    """Returns when so many more steps are done."""
    begun = steps_done(workdir)
    while launcher.poll() is None and steps_done(workdir) < begun + count:
        time.sleep(0.01)


def steps_done(workdir: Path) -> int:
    rows = read_metrics(workdir / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for task in tasks for child in task.read_text().split())
