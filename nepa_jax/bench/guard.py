"""Is this jax as fast as it was? The step beside a matrix product, and arrays of many axes.

Seconds differ from machine to machine. How many times a step takes the time of a matrix product of the
same FLOPs, on the same device and in the same minute, differs much less: by what jaxlib makes of the rest.
"""

import os
import re
import subprocess
import sys
import time
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

SIDES = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # of the square matrices
FAR = 2.0  # times the known ratio: no noise

# By jax, device and step (:func:`name_of`): docs/performance.md has the commands.
KNOWN: dict[tuple[str, str, str], float] = {
    ("0.10", "cpu", "nepa 384 wide, 12 deep, 196 patches, batch 16"): 1.93,
}

MANY_AXES_S = 60
# Sums of products with seven and with eight axes (jax issues 39257 and 40412: jaxlib 0.10.2 and 0.11.0).
MANY_AXES = """
import jax, jax.numpy as jnp
total = jax.jit(lambda a, b, axis: jnp.sum(a * b, axis=axis), static_argnums=2)
a = jnp.ones((3, 1, 2, 2, 8, 8, 8))
b, c = jnp.ones((10, 4, 6, 1, 1, 1, 1, 1)), jnp.ones((10, 4, 6, 9, 9, 9, 9, 9))
jax.block_until_ready((total(a, a, 3), total(b, c, 2)))
"""
FEWEST_OF_MANY = 7


class Product:
    """A matrix product of the dtype of a config's, again and again."""

    def __init__(self, config: ConfigDict):
        self._side = SIDES.get(jax.default_backend(), max(SIDES.values()))
        self._factor = jnp.full((self._side, self._side), 0.5, config.run.dtype)
        self._product = jax.jit(jnp.matmul)
        self._run_once()

    def run(self, seconds: float) -> float:
        """Products for some seconds; returns those of a FLOP on one device."""
        count, began = 0, time.perf_counter()
        while count == 0 or time.perf_counter() - began < seconds:
            self._run_once()
            count += 1
        return (time.perf_counter() - began) / count / (2 * self._side**3)

    def _run_once(self) -> None:
        jax.block_until_ready(self._product(self._factor, self._factor))


def name_of(config: ConfigDict) -> str:
    """A resolved config's step in a few words: what its time depends on."""
    model, objective = config.model, config.objective.name.rpartition(".")[2]
    height, width = (side // model.patch_size for side in model.image_size)
    return (
        f"{objective} {model.embed_dim} wide, {model.depth} deep, {height * width} patches, "
        f"batch {config.data.batch_size}"
    )


def verdict(config: ConfigDict, ratio: float) -> str:
    """What a step's time over that of a product of its FLOPs says of this jax."""
    release = ".".join(jax.__version__.split(".")[:2])
    step, device = name_of(config), jax.devices()[0].device_kind
    known = KNOWN.get((release, device, step))
    if known is None:
        return f"nothing known of jax {release}, {device}: {step}"
    if ratio <= FAR * known:
        return f"as it should be: {known:.2f} known of jax {release}, {device}"
    return (
        f"SLOW: {ratio / known:.1f} times the {known:.2f} known of jax {release}, {device}; if nothing else "
        f"runs here, try another jax than {jax.__version__}"
    )


def many_axes(program: str) -> str:
    """Whether this jaxlib computes with arrays of seven and eight axes on a CPU, and if a program has any.

    In a process of its own with a time limit: one that cannot, crashes or never ends.
    """
    most = max((len(axes.split(",")) for axes in re.findall(r"\w\[([\d,]+)\]", program)), default=0)
    has = f"this step has at most {most} axes"
    how = _tried(MANY_AXES)
    if how is None:
        return f"jaxlib computes with 8 axes; {has}"
    danger = "is in danger" if most >= FEWEST_OF_MANY else "is in no danger"
    return f"jaxlib {version('jaxlib')} {how} with 7 or 8 axes on this CPU; {has} and {danger}"


def _tried(code: str) -> str | None:
    """How a program on the CPU went wrong; None: it did not."""
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, timeout=MANY_AXES_S
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {MANY_AXES_S} s"
    if done.returncode < 0:
        return f"crashes (signal {-done.returncode})"
    return f"fails (exit code {done.returncode})" if done.returncode else None


def guarded(config: ConfigDict, ratio: float, program: str) -> dict[str, Any]:
    """The figures of the guard, for a result."""
    return {
        "over_product": ratio,
        "guard": verdict(config, ratio),
        "many_axes": many_axes(program),
    }
