"""launch/local.py with a stand-in for nepa_jax: it only starts, watches and ends processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"

# Found before the real one, by PYTHONPATH.
STAND_IN = """
import os, signal, subprocess, sys, time

process = sys.argv[-1].removeprefix("--process=")
{body}
"""


@pytest.fixture
def local(cloud):
    def start(body: str, *flags: str) -> subprocess.Popen:
        package = cloud.folder / "first" / "nepa_jax"
        package.mkdir(parents=True)
        cloud.environment["PYTHONPATH"] = str(package.parent)
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

for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
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


@pytest.mark.trial
@pytest.mark.parametrize(
    "flag",
    [
        *(f"--processes={value}" for value in ("0", "-1", "1.5", "x", "1000", "9" * 5000, "")),
        *(f"--devices-per-process={value}" for value in ("0", "x", "100000")),
        *(f"--grace={value}" for value in ("0", "-1", "nan", "inf", "x")),
        "--process=2",
    ],
)
def test_a_mistake_is_one_line(flag, cloud):
    others = [] if flag.startswith("--processes") else ["--processes=2"]
    code, output, error = cloud.run("local.py", *others, flag, "--", "pretrain")
    assert code == 2 and output == "" and len(error.splitlines()) == 1 and len(error) < 200, error
    assert flag.partition("=")[0] in error


def test_a_module_of_the_current_folder_is_not_run(local, cloud):
    (cloud.folder / "nepa_jax.py").write_text("print('not ours')")
    code, output, _ = finish(local("print('ours')"))
    assert code == 0 and sorted(output.splitlines()) == ["[0] ours", "[1] ours"]


def test_lines_that_each_pair_of_processes_prints_are_left_out(local):
    chatter = (
        "[Gloo] Rank 1 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1"
    )
    code, output, _ = finish(local(f"print({chatter!r}); print('[Gloo] Rank 1 failed')"))
    assert code == 0
    assert sorted(output.splitlines()) == ["[0] [Gloo] Rank 1 failed", "[1] [Gloo] Rank 1 failed"]


DEAF = """
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: print("got", number, flush=True))
print(os.getpid(), flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    time.sleep(1)
"""


@pytest.mark.trial
def test_a_second_signal_ends_all_at_once(local):
    launcher = local(DEAF)
    pids = [int(launcher.stdout.readline().split()[1]) for _ in range(2)]
    launcher.send_signal(signal.SIGINT)
    launcher.send_signal(signal.SIGTERM)  # the same notice, sent twice
    time.sleep(1.5)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    code, output, error = finish(launcher)
    assert code == 130 and "a second signal" in error and output.count("got 2") == 2
    assert "got 15" not in output and all(gone(pid) for pid in pids)


@pytest.mark.trial
def test_a_run_goes_on_when_nobody_reads_what_it_prints(local):
    """As with `| head`, or a terminal that was closed."""
    body = """
if process == "0":
    print("first", flush=True)
    for _ in range(5000):
        print("x" * 100)
    open("end", "w").close()
"""
    launcher = local(body)
    launcher.stdout.readline()
    launcher.stdout.close()
    launcher.stderr.close()
    assert launcher.wait(20) == 0


@pytest.mark.trial
def test_what_the_parent_ignores_stays_ignored(local, cloud):
    """nohup."""
    finish(local("print('ready', flush=True); time.sleep(0.5); print('end')"))
    nohup = subprocess.Popen(
        ["nohup", sys.executable, str(LAUNCH / "local.py"), "--processes=1", "--", "pretrain"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=cloud.environment,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert nohup.stdout.readline() == "[0] ready\n"
    nohup.send_signal(signal.SIGHUP)
    code, output, _ = finish(nohup)
    assert code == 0 and output == "[0] end\n"
