"""The folder of a run: can it be written, and is it whole?"""

import hashlib
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from nepa_jax.base.errors import UserError, require_folder
from nepa_jax.base.private import private_folder
from nepa_jax.base.progress import warn
from nepa_jax.config.keys import LOGGERS
from nepa_jax.run.goodput import Goodput

# What a run writes, beside folders of its own.
FILES = ("config.json", "metrics.jsonl", "goodput.json", "run.lock", "DONE")
FOLDERS = ("checkpoints", "profile", "pictures", "loggers", *LOGGERS)


def writable_folder(workdir: str) -> Path:
    """Makes the folder and tries to write there.

    Raises:
        UserError: it cannot be written, is a URL, or holds a folder for a file or a file for a folder.
    """
    require_folder(workdir, "--workdir")
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{uuid.uuid4().hex}"  # hosts and containers share pids
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"--workdir={workdir}: cannot be written ({error.strerror}); give another folder"
        ) from None
    wrong = [f"{folder / name} is a folder" for name in FILES if (folder / name).is_dir()]
    wrong += [f"{folder / name} is a file" for name in FOLDERS if (folder / name).is_file()]
    if wrong:
        raise UserError(
            f"--workdir={workdir}: {'; '.join(wrong)}; move it away, or give another folder"
        )
    return folder


def lost_checkpoints(workdir: Path, goodput: Goodput) -> str:
    """What is wrong with a workdir without a checkpoint that has had one; "" if it has had none."""
    signs = [f"{workdir / 'DONE'} is there"] * (workdir / "DONE").exists()
    if goodput.former_saved_step:
        signs.append(f"{workdir / 'goodput.json'} tells of one of step {goodput.former_saved_step}")
    if not signs:
        return ""
    return (
        f"--workdir={workdir}: its checkpoints are gone ({'; '.join(signs)}); bring "
        f"{workdir / 'checkpoints'} back or mount it, give another --workdir, or remove DONE, "
        "goodput.json and metrics.jsonl to begin again at step 0"
    )


@contextmanager
def compiled_programs_kept() -> Iterator[None]:
    """Caches compiled programs for this user on this kind of machine: a resumed run starts at once.

    Not in the workdir: a program is native code, and workdirs come from others. The environment
    variable JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        yield
        return
    machine = hashlib.sha256((platform.machine() + _processor_flags()).encode()).hexdigest()
    try:
        folder = private_folder("programs", machine[:12])
    except UserError as problem:
        warn(f"compiled programs are not kept: {problem}")
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        reset_cache()  # jax would go on to use it


def _processor_flags() -> str:
    """The instructions that programs made here may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
