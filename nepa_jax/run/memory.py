"""Whether a step fits into memory, asked of the compiled program; and what would."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.base.memory import memory_bytes
from nepa_jax.plan.chips import GIB
from nepa_jax.plan.estimate import device_bytes, step_bytes
from nepa_jax.plan.search import changed, options
from nepa_jax.step import TrainState

Compile = Callable[[ConfigDict], Any]  # a config's step, as a program


def free_bytes() -> int | None:
    """What one device of this process has left, beside what lies there now; None if it does not say."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":  # host devices share one memory
        return min(_available_bytes(), memory_bytes()) // jax.local_device_count()
    told = device.memory_stats() or {}
    if "bytes_limit" not in told:
        return None
    return told["bytes_limit"] - told.get("bytes_in_use", 0)


def _available_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return memory_bytes()
    row = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return memory_bytes() if row is None else int(row.split()[1]) * 1024


def needed_bytes(program: Any) -> int:
    """What a compiled program takes on a device beside its arguments, which are there already."""
    found = program.memory_analysis()
    if found is None:  # a backend that does not tell
        return 0
    return found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes


def expectation(config: ConfigDict, state: TrainState) -> str:
    """What a step will need, by formula, in one line, beside what there is.

    Args:
        config: resolved.
        state: abstract.
    """
    parts, free = step_bytes(config, state), free_bytes()
    told = ", ".join(f"{name} {size / GIB:,.2f}" for name, size in parts.items() if size)
    there = "" if free is None else f"; {free / GIB:,.2f} GiB are free"
    return f"memory per device, by formula: {sum(parts.values()) / GIB:,.2f} GiB ({told}){there}"


def require_room(state: TrainState) -> None:
    """Asked before a state is made.

    Args:
        state: its leaves have shapes, dtypes and shardings.

    Raises:
        UserError: a device has no room for its part.
    """
    free, needed = free_bytes(), device_bytes(state)
    if free is not None and needed > free:
        raise UserError(
            f"weights, moments and average need {needed / GIB:,.1f} GiB of memory per device, and "
            f"{free / GIB:,.1f} GiB are free; try a smaller model, or more devices with mesh.fsdp"
        )


def fitting(config: ConfigDict, compile_step: Compile, devices: int) -> Any:
    """The compiled step of a config, if a device has room for it.

    Args:
        config: resolved.
        compile_step: makes the program; asked again for what might fit.
        devices: that see different images.

    Raises:
        UserError: it does not fit; names what would, which was compiled as well.
    """
    free = free_bytes()
    with memory_is_told(config):
        program = compile_step(config)
    needed = needed_bytes(program)
    if free is None or needed <= free:
        return program
    del program
    raise UserError(
        f"the step needs {needed / GIB:.1f} GiB of memory per device beside the weights, and "
        f"{free / GIB:.1f} GiB are free; {_advice(config, compile_step, devices, needed, free)}"
    )


def _advice(config: ConfigDict, compile_step: Compile, devices: int, needed: int, free: int) -> str:
    for changes in _smaller(config, devices, needed / max(free, 1)):
        took = needed_bytes(compile_step(changed(config, changes)))
        if took <= free:
            return f"try {' '.join(options(changes))}, which needs {took / GIB:.1f} GiB and gives the same update"
    return "try a smaller model, a smaller data.batch_size, or more devices with mesh.fsdp"


def _smaller(config: ConfigDict, devices: int, times: float) -> Iterator[dict[str, int | str]]:
    """Changes that give the same update from less memory, the fastest first; at most three."""
    images, accum = config.data.batch_size, config.optim.accum_steps
    parts = [n for n in range(accum + 1, images + 1) if images % (n * devices) == 0]
    enough = [n for n in parts if n >= accum * times]
    for n in enough[:1] + enough[2:3]:
        yield {"optim.accum_steps": n}
    if config.run.remat != "full":
        yield {"run.remat": "full"} | ({"optim.accum_steps": parts[-1]} if parts else {})


@contextmanager
def memory_is_told(config: ConfigDict) -> Iterator[None]:
    """Makes one line of the traceback in which a device runs out of memory.

    Raises:
        UserError: it did.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"a device ran out of memory ({str(error).splitlines()[0][:160]}); try "
            f"--config.optim.accum_steps={2 * config.optim.accum_steps}, --config.run.remat=full, "
            "or more devices with --config.mesh.fsdp"
        ) from error
