"""What `nepa-jax plan` does and says."""

import importlib.metadata
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jax
from ml_collections import ConfigDict

from nepa_jax import config as configs
from nepa_jax.base.errors import UserError
from nepa_jax.base.progress import warn
from nepa_jax.plan.checks import check_step
from nepa_jax.plan.chips import Topology, topology_of
from nepa_jax.plan.compile import compiled, has_compiler, wanted_compiler
from nepa_jax.plan.estimate import Plan, estimate
from nepa_jax.plan.search import Planner, all_that_fit, first_that_fits, front
from nepa_jax.plan.where import lines_of

IMAGES = 1_281_167  # of ImageNet-1k, for lengths in epochs
SLOW_COMPILE_S = 300  # so long do hosts wait for one that compiles, while they have the program


@dataclass(frozen=True)
class Asked:
    """What of a plan is wanted."""

    where: bool = False
    search: bool = False
    hours: bool = False  # of the whole run
    chips: int | None = None  # to run it on; None: those of the topology
    price: float | None = None  # of a chip for an hour


def print_plans(config: ConfigDict, names: list[str], asked: Asked, as_json: bool) -> None:
    """Each plan for people when it is made, or all together as JSON. Raises as :func:`plans`."""
    results = []
    for result in plans(config, names, asked):
        warn_of(result)
        results.append(result)
        if not as_json:
            print(text_of(result), flush=True)
    if as_json:
        print(json.dumps(results))


def plans(config: ConfigDict, names: list[str], asked: Asked) -> Iterator[dict[str, Any]]:
    """For each topology its plan, as a dict with the keys of ``Plan``.

    ``overrides`` are options to add: those of the fastest choice, if one was searched for, or of one
    that fits where the config does not. With a search ``front`` holds the best choices, with hours ``run``
    what the whole run takes.

    Args:
        config: as a recipe gives it, overrides applied.

    Raises:
        UserError: a mistake in the config, a topology or an option; libtpu is of another version.
    """
    jax.config.update("jax_platforms", "cpu")  # a machine's own TPU is not asked
    topologies = [topology_of(name) for name in names]
    if not asked.hours and (asked.chips or asked.price is not None):
        raise UserError("--chips and --price go with --hours; add it")
    if asked.price is not None and not 0 <= asked.price < math.inf:
        raise UserError(f"--price={asked.price}: give what a chip costs for an hour, e.g. 1.2")
    by_compiler = has_compiler()
    if not by_compiler:
        how = f"pip install 'libtpu=={wanted_compiler() or '0'}.*'"
        if asked.where:
            raise UserError(f"--where needs the TPUs' compiler, which is not installed; try: {how}")
        warn(f"the TPUs' compiler is not installed: all figures are by formula; try: {how}")
    for topology in topologies:
        check_step(config, topology.num_devices)
        resolved = configs.resolve(config, IMAGES, "tpu")
        one = partial(compiled, where=asked.where) if by_compiler else estimate
        yield _planned(resolved, topology, partial(one, topology=topology), asked)


def _planned(config: ConfigDict, topology: Topology, one: Planner, asked: Asked) -> dict[str, Any]:
    own = one(config)
    best, searched = [], {}
    if asked.search:
        best = front(list(all_that_fit(config, topology.num_devices, one)))
        searched = {"front": [asdict(each) for each in best]}
    elif not own.fits:
        found = first_that_fits(config, topology.num_devices, one)
        best = [found] if found else []
    chosen = best[0] if best else own
    hours = {"run": whole_run(config, topology, chosen, asked)} if asked.hours else {}
    return asdict(replace(own, overrides=chosen.overrides)) | searched | hours


def whole_run(config: ConfigDict, topology: Topology, step: Plan, asked: Asked) -> dict[str, float]:
    """Hours and cost of all steps, if each took its estimate; on other numbers of chips, in proportion."""
    chips = asked.chips or topology.num_chips
    steps = config.schedule.total_steps
    if step.est_step_ms is None:
        return {"steps": steps, "chips": chips}
    chip_hours = steps * step.est_step_ms / 3.6e6 * topology.num_chips
    found = {"steps": steps, "chips": chips, "hours": chip_hours / chips, "chip_hours": chip_hours}
    return found | ({} if asked.price is None else {"cost": chip_hours * asked.price})


# For people


def text_of(result: dict[str, Any]) -> str:
    """A plan as lines."""
    lines = [_heading(result), *map("  {0:16}{1}".format, *zip(*_facts(result), strict=True))]
    if result["where"]:
        lines += ["", *lines_of(result["where"], "ms")]
    return "\n".join(lines)


def _heading(result: dict[str, Any]) -> str:
    topology = topology_of(result["topology"])
    by = "by formula, no compiler"
    if result["by"] == "compiler":
        by = f"compiled by libtpu {importlib.metadata.version('libtpu')}"
    return f"{topology.name}: {topology.num_chips:,} chips ({topology.chip.kind}), {by}"


def _facts(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    fits = "fits" if result["fits"] else "DOES NOT FIT"
    yield (
        "memory",
        (
            f"{result['hbm_gib']:.2f} of {result['hbm_limit_gib']:.2f} GiB per device, estimated: {fits}"
        ),
    )
    parts = {name: size for name, size in result["memory_gib"].items() if size >= 0.005}
    yield "", ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
    model, program = result["model_flops"], result["program_flops"]
    compared = f"; of the program {program:.4g}, {program / model:.2f} times" if program else ""
    yield "FLOPs", f"of the model {model:.4g} a step{compared}"
    for kind, moved in result["collectives"].items():
        yield (
            kind,
            (
                f"{moved['count']:.0f} a step, {moved['bytes'] / 2**20:,.1f} MiB (the largest "
                f"{moved['largest'] / 2**20:,.1f}), at least {moved['min_ms']:.1f} ms on the links"
            ),
        )
    if result["est_step_ms"] is not None:
        ms, share = f"{result['est_step_ms']:.1f} ms", f"MFU {result['est_mfu']:.2f}"
        if program:
            yield (
                "step",
                f"{ms}, {share}: the compiler's cycles, no overlap; ranks programs, is no clock",
            )
        else:
            yield "step", f"at least {ms}, {share} at most: by the chip's peak and its memory's"
    if result["compile_s"] is not None:
        yield "compiled in", f"{result['compile_s']:.0f} s ({result['compile_cpu_s']:.0f} s of CPU)"
    yield from _advice(result)


def _advice(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for each in result.get("front", ()):
        add = " ".join(each["overrides"]) or "as it is"
        yield "choice", f"{each['est_step_ms']:.1f} ms, {each['hbm_gib']:.2f} GiB: {add}"
    if not result["fits"] and "front" not in result:
        yield "fits with", " ".join(result["overrides"]) or "none of what was tried: more chips"
    if run := result.get("run"):
        text = f"{run['steps']:,} steps"
        if "hours" in run:
            text += f", {run['hours']:,.1f} hours on {run['chips']:,} chips: {run['chip_hours']:,.0f} chip-hours"
        yield "whole run", text + (f", costs {run['cost']:,.0f}" if "cost" in run else "")


def warn_of(result: dict[str, Any]) -> None:
    """Of a step that takes long to compile."""
    if (result["compile_s"] or 0) > SLOW_COMPILE_S:
        warn(
            f"{result['topology']}: compiling took {result['compile_s']:.0f} s here, and hosts wait "
            f"{SLOW_COMPILE_S} s for one another; start all of them without compiled programs, or all with"
        )
