"""The launch scripts: which commands they execute, and what they say of mistakes."""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
SCRIPTS = sorted(path.name for path in LAUNCH.glob("*.sh") if path.name != "common.sh")

TPU = ("--name=pod", "--zone=z")
QUEUE = (*TPU, "--accelerator-type=v5litepod-256", "--runtime-version=image", "--bucket=data",
         "--package=https://host/p.whl", "--poll=0")  # fmt: skip
JOBSET = ("--name=run", "--image=i:1", "--bucket=data", "--service-account=nepa",
          "--accelerator=tpu-v5-lite-podslice", "--topology=16x16")  # fmt: skip
SLURM = ("--name=run", "--nodes=2", "--gpus-per-node=8", "--time=1:00:00", "--venv=/venv")
VERB = ("--", "pretrain", "--config.a='it''s'", "--workdir=/gcs/data/runs/a")


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent / "shellcheck"
    shellcheck = str(beside) if beside.exists() else shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [shellcheck, "-x", *map(str, LAUNCH.glob("*.sh"))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", [*SCRIPTS, "local.py"])
def test_help_has_an_example_and_runs_nothing(script, cloud):
    code, output, _ = cloud.run(script, "--help")
    assert code == 0 and "xample" in output and cloud.calls() == []


@pytest.mark.trial
@pytest.mark.parametrize(
    ("script", "arguments", "parts"),
    [
        ("tpu_vm.sh", (), ["no verb", "--help"]),
        ("tpu_vm.sh", ("creat",), ["unknown verb creat"]),
        ("tpu_vm.sh", ("create",), ["missing --name=... --zone=..."]),
        ("tpu_vm.sh", ("create", *TPU), ["missing --accelerator-type=... --version=..."]),
        ("tpu_vm.sh", ("create", "--nam=x"), ["unknown flag --nam"]),
        ("tpu_vm.sh", ("create", "--name", "x"), ["--name=VALUE"]),
        ("tpu_vm.sh", ("create", "pod"), ["unknown argument pod"]),
        ("tpu_vm.sh", ("install", *TPU, "--package=no.whl"), ["no.whl", "pip wheel"]),
        ("tpu_vm.sh", ("start", *TPU), ["nothing to start"]),
        ("queued_resources.sh", (), ["missing --name=...", "--runtime-version=...", "--bucket=..."]),
        ("queued_resources.sh", QUEUE, ["nothing to run"]),
        ("queued_resources.sh", (*QUEUE, "--", "pretrain"), ["no --workdir=DIR"]),
        ("queued_resources.sh", (*QUEUE, "--", "x", "--workdir=w"), ["--workdir=w", "/gcs/data/"]),
        ("gke.sh", ("pool",), ["missing --cluster=...", "--topology=..."]),
        ("gke.sh", ("start", *JOBSET[:-1], "--topology=16", *VERB), ["--topology=16", "16x16"]),
        ("gke.sh", ("start", *JOBSET[:-1], "--topology=3x3", *VERB), ["9 chips", "--chips-per-host=4"]),
        ("gke.sh", ("start", *JOBSET, "--", "x", "--workdir=w"), ["--workdir=w", "/gcs/data/"]),
        ("gke.sh", ("start", *JOBSET, "--", "x", "--workdir=/gcs/other/w"), ["/gcs/data/"]),
        ("gke.sh", ("start", *JOBSET, "--", "x", "--workdir=/gcs/data/../../w"), ["/gcs/data/"]),
        ("gke.sh", ("start", *JOBSET, "--", "x", "--workdir=/gcs/data/$(x)"), ["/gcs/data/"]),
        ("gke.sh", ("start", *JOBSET, "--", "\x07", "--workdir=/gcs/data/w"), ["cannot hold"]),
        ("queued_resources.sh", (*QUEUE, "--", "x", "--workdir=gs://data/w"), ["/gcs/data/"]),
        ("queued_resources.sh", (*QUEUE, "--", "x", "--workdir=/gcs/data/*"), ["/gcs/data/"]),
        ("queued_resources.sh", (*QUEUE, "--", "x", "--workdir="), ["--workdir=", "empty"]),
        ("queued_resources.sh", (*QUEUE, *VERB, "--workdir=/gcs/data/b"), ["--workdir", "twice"]),
        ("tpu_vm.sh", ("create", *TPU, "--zone=z"), ["--zone is given twice"]),
        ("tpu_vm.sh", ("create", *TPU, "--spot", "--spot"), ["--spot is given twice"]),
        ("tpu_vm.sh", ("create", *TPU, "--spot=no"), ["--spot takes no value"]),
        ("tpu_vm.sh", ("create", *TPU, "--project="), ["--project is empty", "leave it out"]),
        ("tpu_vm.sh", ("create", "--name zone=x"), ["unknown flag --name zone"]),
        ("tpu_vm.sh", ("create", "--*=x"), ["unknown flag --*"]),
        ("tpu_vm.sh", ("create", "--=x"), ["unknown flag --"]),
        ("tpu_vm.sh", ("create", "--flags=x"), ["unknown flag --flags"]),
        ("tpu_vm.sh", ("create", "--rest=x"), ["unknown flag --rest"]),
        ("slurm.sh", ("submit", *SLURM), ["nothing to run"]),
        ("slurm.sh", ("submit", *VERB), ["missing --name=... --nodes=..."]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_runs_nothing(script, arguments, parts, cloud):
    code, output, error = cloud.run(script, *arguments)
    assert code == 2 and output == "" and len(error.splitlines()) == 1, error
    for part in parts:
        assert part in error
    assert cloud.calls() == []


# Values that would run, or change what is applied, somewhere. No script takes them for any flag.
HOSTILE = {
    "command": "b; touch $CLOUD/ran",
    "substitution": "$(touch $CLOUD/ran)",
    "backticks": "`touch $CLOUD/ran`",
    "arithmetic": "host[$(touch $CLOUD/ran)]",
    "quotes": 'https://x/a.zip"; touch $CLOUD/ran; : "',
    "url": "git+https://x/$(touch $CLOUD/ran)",
    "wheel": "a$(touch $CLOUD/ran).whl",
    "words": "1 0 true; touch $CLOUD/ran; :",
    "yaml": "i\n securityContext: {privileged: true}",
    "escape": "i\x1b]0;owned\x07",
    "flag": "-x",
    "placeholder": "@GRACE@",
    "not ASCII": "ä",
}
FLAGS = {
    "tpu_vm.sh": (
        "start", "name zone project accelerator-type version package bucket grace worker",
    ),
    "queued_resources.sh": (
        "", "name zone project accelerator-type runtime-version package bucket poll max-failures grace",
    ),
    "gke.sh": (
        "start", "cluster location project name machine-type topology chips-per-host jobset-version"
        " image bucket service-account accelerator namespace max-restarts grace host",
    ),
    "slurm.sh": (
        "submit", "name nodes gpus-per-node time partition account cpus-per-gpu notice max-failures",
    ),
}  # fmt: skip


@pytest.mark.trial
@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("script", FLAGS)
def test_no_flag_takes_what_could_run_elsewhere(script, value, cloud):
    refuses(cloud, script, {flag: value for flag in FLAGS[script][1].split()})
    assert not (cloud.folder / "ran").exists()


@pytest.mark.trial
@pytest.mark.parametrize("value", ["0", "-1", "0.5", "08", "1e3", "0x10", "٣", "9" * 20, " 1", "x"])
def test_numbers_are_whole_and_in_range(value, cloud):
    refuses(cloud, "slurm.sh", dict.fromkeys(("nodes", "gpus-per-node", "notice"), value))
    refuses(cloud, "tpu_vm.sh", {"grace": value} | ({} if value == "0" else {"worker": value}))
    refuses(cloud, "gke.sh", {"chips-per-host": value, "topology": f"{value}x16"})


def refuses(cloud, script: str, flags: dict[str, str]) -> None:
    """Each flag alone is one line, exit code 2, nothing run; all in one shell."""
    verb, _ = FLAGS[script]
    calls = "".join(
        f"bash {LAUNCH / script} {verb} --dry-run {shlex.quote(f'--{flag}={value}')}; echo $? >&2\n"
        for flag, value in flags.items()
    )
    done = subprocess.run(
        ["bash", "-c", calls],
        env=cloud.environment,
        cwd=cloud.folder,
        capture_output=True,
        text=True,
    )
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["2"] * len(flags) and done.stdout == "", done.stderr
    for flag, line in zip(flags, lines[::2], strict=True):
        assert f"error: --{flag}=" in line and line.isprintable()


@pytest.mark.trial
def test_paths_and_further_flags_are_only_ever_words(cloud):
    """A job's words are read by a shell again; all that could run there is quoted."""
    words = [HOSTILE["command"], HOSTILE["substitution"], HOSTILE["quotes"]]
    for word in words:
        arguments = ("--name=run", "--nodes=1", "--gpus-per-node=1", "--time=1:00:00")
        cloud.run("slurm.sh", "submit", *arguments, f"--venv={word}", f"--log={word}",
                  f"--extra=--comment={word}", *VERB)  # fmt: skip
        (call,) = cloud.calls()
        assert f"--output={word}" in call and f"--comment={word}" in call
        job = shlex.split(call[-1].removeprefix("--wrap="))
        assert f"--venv={word}" in job
    for flag in ("--venv=-x", "--log=a\nb", "--extra=x"):
        assert cloud.run("slurm.sh", "submit", flag)[0] == 2


@pytest.mark.trial
def test_what_is_taken(cloud):
    """Values that people have."""
    for arguments in (
        ("tpu_vm.sh", "delete", "--name=nepa-2", "--zone=us-west4-a", "--project=example.com:p-1"),
        ("tpu_vm.sh", "create", *TPU, "--accelerator-type=v5litepod-256", "--version=v2-alpha-tpuv5-lite"),
        ("tpu_vm.sh", "install", *TPU, "--package=git+https://host/o/p.git@v1.0#subdirectory=a"),
        ("tpu_vm.sh", "install", *TPU, "--package=https://host/p-1+cpu-py3-none-any.whl?a=b&c=%20"),
        ("gke.sh", "install", "--jobset-version=v0.10.1"),
        ("slurm.sh", "submit", *SLURM[:3], "--time=2-12:30:00", "--venv=my env", *VERB),
        ("slurm.sh", "submit", *SLURM, "--account=lab.x", "--partition=a100,h100", *VERB),
        ("gke.sh", "start", "--image=eu-docker.pkg.dev/p/nepa/nepa_jax@sha256:" + "0" * 64, *JOBSET[:1],
         *JOBSET[2:], *VERB),
    ):  # fmt: skip
        code, _, error = cloud.run(*arguments)
        assert code == 0, error


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_vm.sh", ("create", *TPU, "--accelerator-type=a", "--version=v", "--extra=--network=n")),
        ("tpu_vm.sh", ("install", *TPU, "--package=git+https://host/p@1", "--bucket=data")),
        ("tpu_vm.sh", ("start", *TPU, *VERB)),
        ("tpu_vm.sh", ("stop", *TPU)),
        ("gke.sh", ("install",)),
        ("gke.sh", ("logs", "--name=run", "--host=3")),
        ("slurm.sh", ("submit", *SLURM, *VERB)),
    ],
)  # fmt: skip
def test_dry_run_prints_what_would_be_executed_and_executes_nothing(script, arguments, cloud):
    assert cloud.run(script, *arguments)[0] == 0
    executed = cloud.calls()
    code, output, _ = cloud.run(script, arguments[0], "--dry-run", *arguments[1:])
    assert code == 0 and cloud.calls() == []
    assert shlex.split(output) == [word for call in executed for word in call]
    assert executed


# TPU VMs


def test_tpu_commands(cloud):
    tpu = ["gcloud", "compute", "tpus", "tpu-vm"]
    cloud.run("tpu_vm.sh", "create", *TPU, "--project=p", "--accelerator-type=v5litepod-256",
              "--version=image", "--spot", "--extra=--network=n", "--extra=--tags=t")  # fmt: skip
    assert cloud.calls() == [
        [*tpu, "create", "pod", "--accelerator-type=v5litepod-256", "--version=image", "--spot",
         "--network=n", "--tags=t", "--zone=z", "--project=p"]
    ]  # fmt: skip
    cloud.run(
        "tpu_vm.sh", "create", *TPU, "--accelerator-type=a", "--version=v", "--autocheckpoint"
    )
    assert cloud.calls()[0][:2] == ["gcloud", "alpha"]
    assert "--autocheckpoint-enabled" in cloud.calls()[0]
    cloud.run("tpu_vm.sh", "delete", *TPU)
    assert cloud.calls() == [[*tpu, "delete", "pod", "--zone=z"]]
    cloud.run("tpu_vm.sh", "logs", *TPU, "--worker=7")
    assert cloud.calls() == [
        [*tpu, "ssh", "pod", "--worker=7", "--command=tail -n 200 -F ~/nepa/log", "--zone=z"]
    ]


def test_a_wheel_is_copied_to_all_workers_first(cloud):
    (cloud.folder / "nepa_jax-1-py3-none-any.whl").touch()
    code, _, error = cloud.run(
        "tpu_vm.sh", "install", *TPU, "--package=nepa_jax-1-py3-none-any.whl"
    )
    copy, install = cloud.calls()
    assert code == 0, error
    lock = str(LAUNCH / ".." / "requirements.lock")
    assert copy[3:] == ["tpu-vm", "scp", "nepa_jax-1-py3-none-any.whl", lock, "pod:",
                        "--worker=all", "--zone=z"]  # fmt: skip
    assert "--constraints=$HOME/requirements.lock" in " ".join(install)
    assert "--worker=all" in install
    assert 'nepa-jax[tpu] @ file://$HOME/nepa_jax-1-py3-none-any.whl"' in " ".join(install)


# ssh, played here: the worker's shell runs the command, with a folder for what /dev/shm is there.
SSH = """
for word; do
  [[ $word == --command=* ]] || continue
  script=${word#--command=}
  bash -c "${script//\\/dev\\/shm/$CLOUD}"
  exit
done
"""
RUN = """#!/usr/bin/env bash
echo "$@"
trap 'echo saved; exit 0' TERM
sleep 60 &
wait
"""


def test_a_run_on_a_worker_starts_once_and_stops(cloud):
    cloud.answer(SSH)
    program = cloud.folder / "nepa" / "venv" / "bin" / "nepa-jax"
    program.parent.mkdir(parents=True)
    program.write_text(RUN)
    program.chmod(0o755)

    def status() -> str:
        return cloud.run("tpu_vm.sh", "status", *TPU)[1].strip()

    assert status() == "idle"
    assert cloud.run("tpu_vm.sh", "start", *TPU, *VERB)[0] == 0
    log = cloud.folder / "nepa" / "log"
    wait_until(lambda: log.exists() and "--workdir" in log.read_text())
    assert status() == "running"
    code, _, error = cloud.run("tpu_vm.sh", "start", *TPU, *VERB)
    assert code != 0 and "already running" in error
    assert cloud.run("tpu_vm.sh", "stop", *TPU)[1] == "stopped\n"
    assert status() == "exit 0"
    assert log.read_text().splitlines() == [" ".join(VERB[1:]), "saved", "exit code 0"]
    assert cloud.run("tpu_vm.sh", "stop", *TPU)[1] == "not running\n"


def wait_until(true) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Queued resources

QUEUE_ANSWERS = """
case "$*" in
  *'queued-resources describe'*)
    state=$(next states)
    [[ $state != NONE ]] || { echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1; }
    echo "$state" ;;
  *'echo idle'*) next statuses ;;
  *'storage ls'*) [[ $(next done) == yes ]] ;;
esac
"""


def actions(cloud) -> list[str]:
    """What was done to the TPU, in order."""
    names = {
        "queued-resources create": "create",
        "queued-resources delete": "delete",
        "reinstall-package": "install",
        "gcsfuse --implicit-dirs": "mount",
        "setsid": "start",
        "echo stopped": "stop",
    }
    found = []
    for call in cloud.calls():
        text = " ".join(call)
        found += [name for part, name in names.items() if part in text]
    return found


def test_a_queued_run_goes_on_after_preemptions_until_it_is_done(cloud):
    cloud.answer(
        QUEUE_ANSWERS,
        states=["NONE", "WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED",
                "NONE", "ACTIVE", "ACTIVE", "ACTIVE"],
        statuses=["idle", "running", "idle", "exit 0", "running"],
        done=["no"] * 11 + ["yes"],
    )  # fmt: skip
    code, _, error = cloud.run("queued_resources.sh", *QUEUE, "--spot", *VERB)
    assert code == 0, error
    begin = ["create", "install", "mount", "start"]
    # Taken away while it ran; then it saved and ended by SIGTERM on a TPU that stayed.
    assert actions(cloud) == [*begin, "delete", *begin, "stop", "start", "delete"]
    create = next(call for call in cloud.calls() if "create" in call)
    assert create == ["gcloud", "compute", "tpus", "queued-resources", "create", "pod", "--zone=z",
                      "--node-id=pod", "--accelerator-type=v5litepod-256",
                      "--runtime-version=image", "--spot"]  # fmt: skip
    delete = next(call for call in cloud.calls() if "delete" in call)
    assert delete[4:] == ["delete", "pod", "--zone=z", "--force", "--quiet"]
    looked = {call[-1] for call in cloud.calls() if "storage" in call}
    assert looked == {"gs://data/runs/a/DONE"}
    assert error.splitlines()[-1].endswith("done: gs://data/runs/a/DONE")


def test_a_run_that_is_done_asks_for_nothing(cloud):
    cloud.answer(QUEUE_ANSWERS, states=["NONE"], done=["yes"])
    assert cloud.run("queued_resources.sh", *QUEUE, *VERB)[0] == 0
    assert actions(cloud) == []


def test_a_running_run_is_only_watched(cloud):
    cloud.answer(QUEUE_ANSWERS, states=["ACTIVE"], statuses=["running"], done=["no", "no", "yes"])
    assert cloud.run("queued_resources.sh", *QUEUE, *VERB)[0] == 0
    assert actions(cloud) == ["delete"]


def test_a_mistake_in_the_run_is_not_repeated(cloud):
    cloud.answer(QUEUE_ANSWERS, states=["ACTIVE"], statuses=["idle", "exit 2"], done=["no"])
    code, _, error = cloud.run("queued_resources.sh", *QUEUE, *VERB)
    assert code == 2 and "flags or data are wrong" in error and "costs money" in error
    assert actions(cloud) == ["install", "mount", "start"]


def test_failures_are_counted(cloud):
    cloud.answer(QUEUE_ANSWERS, states=["ACTIVE"], statuses=["exit 134"], done=["no"])
    code, _, error = cloud.run("queued_resources.sh", *QUEUE, "--max-failures=3", *VERB)
    assert code == 1 and "failure 3 of 3" in error and "logs" in error
    assert actions(cloud) == ["stop", "start"] * 2


def test_a_failed_request_is_made_again(cloud):
    cloud.answer(QUEUE_ANSWERS, states=["FAILED", "NONE", "ACTIVE"], statuses=["running"],
                 done=["no"] * 3 + ["yes"])  # fmt: skip
    assert cloud.run("queued_resources.sh", *QUEUE, *VERB)[0] == 0
    assert actions(cloud) == ["delete", "create", "delete"]


def test_a_dry_run_of_the_queue_shows_one_round(cloud):
    code, output, _ = cloud.run("queued_resources.sh", *QUEUE, "--dry-run", *VERB)
    assert code == 0 and cloud.calls() == []
    order = ["create", "describe", "reinstall", "gcsfuse", "setsid", "DONE", "delete"]
    places = [output.index(word) for word in order]
    assert places == sorted(places)


# GKE


def manifest(cloud, *arguments: str) -> dict:
    yaml = pytest.importorskip("yaml")
    cloud.answer('cat > "$CLOUD/applied"')
    code, _, error = cloud.run("gke.sh", "start", *JOBSET, *arguments)
    assert code == 0, error
    assert cloud.calls() == [["kubectl", "apply", "-f", "-"]]
    text = (cloud.folder / "applied").read_text()
    assert not re.search("@[A-Z_]+@", text)
    return yaml.safe_load(text)


def test_the_jobset_has_the_slice_the_bucket_and_the_arguments(cloud):
    jobset = manifest(
        cloud, "--max-restarts=7", "--", "pretrain", ARGUMENT, "--workdir=/gcs/data/w"
    )
    assert jobset["metadata"]["name"] == "run"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 7
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 64 and job["completionMode"] == "Indexed"
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "16x16",
    }
    assert pod["terminationGracePeriodSeconds"] == 360
    container = pod["containers"][0]
    assert container["image"] == "i:1" and container["resources"]["limits"] == {"google.com/tpu": 4}
    words = [kubernetes_expands(word) for word in container["command"][3:]]
    assert words == ["nepa-jax", "pretrain", ARGUMENT, "--workdir=/gcs/data/w"]


ARGUMENT = '--x=a\\"b\nc\td $(HOSTNAME) $$ & @grace@ é'


def kubernetes_expands(word: str) -> str:
    """As it does with a command's words: two dollars are one, $(NAME) is a variable's value."""
    return re.sub(r"\$\$|\$\(\w+\)", lambda found: "$" if found[0] == "$$" else "value", word)


@pytest.mark.parametrize(
    ("run", "done", "expected"),
    [("exit 0", True, 0), ("exit 0", False, 75), ("exit 2", False, 2), ("exit 134", True, 134)],
)
def test_a_pod_ends_well_only_when_the_run_is_done(run, done, expected, cloud):
    assert pod_ends(cloud, run, done) == expected


def test_a_pod_passes_sigterm_on_and_waits_for_the_save(cloud):
    run = "trap 'sleep 0.3; exit 0' TERM; touch started; sleep 60 & wait"
    assert pod_ends(cloud, run, done=False, told=True) == 75


def pod_ends(cloud, run: str, done: bool, told: bool = False) -> int:
    """Exit code of the pod's command around a stand-in for nepa-jax."""
    command = manifest(cloud, *VERB)["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
        "spec"
    ]["containers"][0]["command"]
    program = cloud.folder / "bin" / "nepa-jax"
    program.write_text(f"#!/usr/bin/env bash\n{run}\n")
    program.chmod(0o755)
    if done:
        (cloud.folder / "DONE").touch()
    command[2] = command[2].replace("/gcs/data/runs/a", str(cloud.folder))
    process = subprocess.Popen(command, env=cloud.environment, cwd=cloud.folder)
    try:
        if told:
            wait_until((cloud.folder / "started").exists)
            process.send_signal(signal.SIGTERM)
        return process.wait(20)
    finally:
        process.kill()


def test_gke_commands(cloud):
    where = ("--name=slice", "--cluster=c", "--location=l")
    cloud.run("gke.sh", "pool", *where, "--machine-type=ct5lp-hightpu-4t", "--topology=4x8",
              "--spot", "--extra=--reservation=r")  # fmt: skip
    assert cloud.calls() == [
        ["gcloud", "container", "node-pools", "create", "slice", "--cluster=c", "--location=l",
         "--machine-type=ct5lp-hightpu-4t", "--tpu-topology=4x8", "--num-nodes=8", "--spot",
         "--reservation=r"]
    ]  # fmt: skip
    cloud.run("gke.sh", "delete", *where)
    assert cloud.calls()[0][2:5] == ["node-pools", "delete", "slice"]
    cloud.run("gke.sh", "stop", "--name=run", "--namespace=n")
    assert cloud.calls() == [["kubectl", "delete", "jobset", "run", "--namespace=n"]]
    cloud.run("gke.sh", "status", "--name=run")
    assert [call[:3] for call in cloud.calls()] == [["kubectl", "get", "jobset"], ["kubectl", "get", "pods"]]  # fmt: skip


# SLURM


def test_sbatch_gets_a_job_that_is_told_before_its_time_ends(cloud):
    cloud.run("slurm.sh", "submit", *SLURM, "--partition=gpu", "--extra=--exclusive", *VERB)
    (call,) = cloud.calls()
    assert call[:-1] == ["sbatch", "--job-name=run", "--nodes=2", "--ntasks-per-node=8",
                         "--gpus-per-node=8", "--cpus-per-task=8", "--time=1:00:00",
                         "--partition=gpu", "--output=run-%j.log", "--open-mode=append",
                         "--requeue", "--signal=B:TERM@120", "--exclusive"]  # fmt: skip
    words = shlex.split(call[-1].removeprefix("--wrap="))
    assert words[:2] == ["exec", "bash"] and words[3] == "job"
    assert words[-4:] == list(VERB)


def start_job(cloud, srun: str, **lines: list[str]) -> subprocess.Popen:
    cloud.environment["SLURM_JOB_ID"] = "77"
    cloud.answer(
        f'case "${{0##*/}}" in srun) {srun} ;; scancel) touch "$CLOUD/told" ;; esac', **lines
    )
    workdir = f"--workdir={cloud.folder}"
    return cloud.start("slurm.sh", "job", "--venv=/v", "--", "pretrain", workdir)


@pytest.mark.parametrize(
    ("srun", "done", "expected", "requeued"),
    [("exit 0", True, 0, False), ("exit 0", False, 0, True), ("exit 2", False, 2, False)],
)
def test_a_job_queues_again_unless_done_or_wrong(srun, done, expected, requeued, cloud):
    if done:
        (cloud.folder / "DONE").touch()
    job = start_job(cloud, srun)
    job.communicate(timeout=20)
    assert job.returncode == expected
    step, *others = cloud.calls()
    assert step[:5] == ["srun", "--kill-on-bad-exit=1", "--cpus-per-task=1", "timeout", "--foreground"]  # fmt: skip
    assert step[5:] == ["--kill-after=100", "0", "/v/bin/nepa-jax", "pretrain", f"--workdir={cloud.folder}"]  # fmt: skip
    assert others == ([["scontrol", "requeue", "77"]] if requeued else [])


@pytest.mark.trial
def test_a_job_whose_hosts_came_late_starts_again(cloud):
    job = start_job(cloud, 'exit "$(next codes)"', codes=["1", "134", "0"])
    job.communicate(timeout=20)
    assert job.returncode == 0
    assert [call[0] for call in cloud.calls()] == ["srun", "srun", "srun", "scontrol"]


@pytest.mark.trial
def test_a_job_that_fails_again_and_again_ends(cloud):
    job = start_job(cloud, "exit 1")
    _, error = job.communicate(timeout=20)
    assert job.returncode == 1 and "failure 3 of 3" in error
    assert [call[0] for call in cloud.calls()] == ["srun"] * 3


def test_a_job_passes_its_notice_to_all_processes(cloud):
    srun = 'touch "$CLOUD/started"; until [[ -f $CLOUD/told ]]; do sleep 0.05; done; exit 0'
    job = start_job(cloud, srun)
    try:
        wait_until((cloud.folder / "started").exists)
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=20)
    finally:
        job.kill()
    assert job.returncode == 0
    assert cloud.calls()[1:] == [["scancel", "--signal=TERM", "77"], ["scontrol", "requeue", "77"]]
