"""launch/local.py with a stand-in for nepa_jax: it only starts, watches and ends processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

# In the working folder, so that ``python -m nepa_jax`` finds it first.
STAND_IN = """
import os, signal, subprocess, sys, time

process = sys.argv[-1].removeprefix("--process=")
{body}
"""


@pytest.fixture
def local(cloud):
    def start(body: str, *flags: str) -> subprocess.Popen:
        package = cloud.folder / "nepa_jax"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(STAND_IN.format(body=body))
        return cloud.start("local.py", "--processes=2", *flags, "--", "pretrain", "--workdir=w")

    return start


def finish(launcher: subprocess.Popen) -> tuple[int, str, str]:
    try:
        output, error = launcher.communicate(timeout=20)
    finally:
        launcher.kill()
    return launcher.returncode, output, error


def gone(pid: int) -> bool:
    """Whether a process ends soon; one that nobody waits for counts as ended."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(") ")[2].startswith("Z"):
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def test_each_process_has_its_flags_its_devices_and_its_prefix(local, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "unused")
    monkeypatch.delenv("NPROC", raising=False)
    names = '"JAX_PLATFORMS"], os.environ["NPROC"], os.environ["XLA_FLAGS"'
    body = f'print(*sys.argv[1:], os.environ[{names}]); print("x", end="")'
    code, output, _ = finish(local(body, "--devices-per-process=4"))
    assert code == 0
    lines = sorted(output.splitlines())
    assert [line for line in lines if line.endswith("x")] == ["[0] x", "[1] x"]
    for i, line in enumerate(line for line in lines if "pretrain" in line):
        number, verb, workdir, address, processes, process, platform, threads, *flags = line.split()
        assert (number, verb, workdir) == (f"[{i}]", "pretrain", "--workdir=w")
        assert address.startswith("--coordinator=localhost:")
        assert (processes, process, platform) == ("--processes=2", f"--process={i}", "cpu")
        assert flags[-1] == "--xla_force_host_platform_device_count=4"
        assert int(threads) >= 16  # collectives that wait for each other may not keep them all
    assert len({line.split()[3] for line in lines if "pretrain" in line}) == 1


def test_the_code_is_that_of_the_one_that_failed_and_the_other_is_killed(local):
    began = time.monotonic()
    body = 'sys.exit(3) if process == "1" else time.sleep(60)'
    code, _, error = finish(local(body, "--grace=0.3"))
    assert code == 3 and time.monotonic() - began < 15
    assert "process 1 ended with 3" in error and "process 0 still runs after 0.3 s: killed" in error


def test_the_others_may_end_by_themselves(local):
    body = 'time.sleep(0.5 if process == "0" else 0); print("end"); sys.exit(int(process) * 3)'
    code, output, _ = finish(local(body))
    assert code == 3 and sorted(output.split("\n")) == ["", "[0] end", "[1] end"]


WAIT = """
def stop(number, frame):
    print("got", number, flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all(number, local):
    launcher = local(WAIT)
    lines = [launcher.stdout.readline() for _ in range(2)]
    assert sorted(lines) == ["[0] ready\n", "[1] ready\n"]
    launcher.send_signal(number)
    code, output, _ = finish(launcher)
    assert code == 0
    assert sorted(output.splitlines()) == [f"[0] got {int(number)}", f"[1] got {int(number)}"]


CHILDREN = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
if process == "0":
    sys.exit(1)
time.sleep(60)
"""


def test_nothing_is_left_behind(local):
    code, output, _ = finish(local(CHILDREN, "--grace=0.2"))
    pids = [int(word) for line in output.splitlines() for word in line.split()[1:]]
    assert code == 1 and len(pids) == 4
    assert all(gone(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's death")
def test_processes_die_with_a_killed_launcher(local):
    launcher = local("print(os.getpid(), flush=True); time.sleep(60)")
    pids = [int(launcher.stdout.readline().split()[1]) for _ in range(2)]
    os.kill(launcher.pid, signal.SIGKILL)
    finish(launcher)
    assert all(gone(pid) for pid in pids)


def test_a_mistake_is_one_line(cloud):
    code, _, error = cloud.run("local.py", "--processes=0", "--", "pretrain")
    assert code == 2 and "--processes=0: give 1 or more" in error
