"""Which mesh, remat and microbatch: what fits first, or all that fit, with the best of them.

Choices are ordered by what they save: fsdp over more devices, more remat, more microbatches. What saves
no less than a choice that fits, fits; what saves no more than one that does not, does not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from ml_collections import ConfigDict

from nepa_jax.base.errors import UserError
from nepa_jax.config import flat_keys
from nepa_jax.mesh import mesh_problems
from nepa_jax.objectives.base import load_objective
from nepa_jax.plan.estimate import Plan, abstract_mesh
from nepa_jax.step import abstract_state

WIDEST = 16  # devices of fsdp: shards of more are too small for a TPU's tiles
REMAT = ("none", "names", "full")
MICROBATCH = (32, 8, 2)  # images on a device; beside all that it has

Changes = dict[str, Any]  # key of the config -> value
Planner = Callable[[ConfigDict], Plan]


def changed(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """A copy with other values."""
    copy = ConfigDict(config.to_dict())
    for key, value in changes.items():
        section, name = key.split(".")
        copy[section][name] = value
    return copy


def options(changes: Mapping[str, Any]) -> list[str]:
    """The same changes, to paste into a command."""
    return [f"--config.{key}={value}" for key, value in changes.items()]


def choices(config: ConfigDict, num_devices: int) -> list[Changes]:
    """All that are tried, those that save least first. Each gives the same update."""
    images = config.data.batch_size * max(config.mesh.tensor, 1) // num_devices
    accums = sorted({1, *(images // left for left in MICROBATCH if images > left)})
    found = [
        {"mesh.data": -1, "mesh.fsdp": fsdp, "run.remat": remat, "optim.accum_steps": accum}
        for fsdp, remat, accum in product(_widths(config, num_devices), REMAT, accums)
    ]
    return [each for each in found if not mesh_problems(changed(config, each), num_devices)]


def _widths(config: ConfigDict, num_devices: int) -> list[int]:
    """Of fsdp: one, and the widest that divides the devices and every axis that it is to split."""
    width = WIDEST
    while width > 1 and not _divides(config, num_devices, width):
        width //= 2
    return sorted({1, width})


def _divides(config: ConfigDict, num_devices: int, width: int) -> bool:
    spread = changed(config, {"mesh.data": -1, "mesh.fsdp": width, "optim.accum_steps": 1})
    try:
        mesh = abstract_mesh(spread, num_devices)
        abstract_state(spread, load_objective(config.objective.name), mesh)
    except UserError:
        return False
    return True


def _saves_no_less(one: Changes, other: Changes) -> bool:
    def rank(changes: Changes) -> tuple[int, ...]:
        remat = REMAT.index(changes["run.remat"])
        return changes["mesh.fsdp"], remat, changes["optim.accum_steps"]

    return all(a >= b for a, b in zip(rank(one), rank(other), strict=True))


def chain(config: ConfigDict, num_devices: int) -> list[Changes]:
    """Choices of which each saves no less than the one before, from the least to the most."""
    found: list[Changes] = []
    for choice in choices(config, num_devices):
        if not found or _saves_no_less(choice, found[-1]):
            found.append(choice)
    return found


def first_that_fits(config: ConfigDict, num_devices: int, plan: Planner) -> Plan | None:
    """Of the chain, the first that fits: found by halving."""
    tried = chain(config, num_devices)
    low, high, best = 0, len(tried), None
    while low < high:
        middle = (low + high) // 2
        found = planned(config, tried[middle], plan)
        if found.fits:
            high, best = middle, found
        else:
            low = middle + 1
    return best


def planned(config: ConfigDict, changes: Changes, plan: Planner) -> Plan:
    """The plan of a choice, with what it changes in the config."""
    new = changed(config, changes)
    other = {key: value for key, value in changes.items() if flat_keys(config)[key] != value}
    return replace(plan(new), overrides=options(other))


def all_that_fit(config: ConfigDict, num_devices: int, plan: Planner) -> Iterator[Plan]:
    """Plans of all choices that fit, those that save most first; what cannot fit is not tried."""
    failed: list[Changes] = []
    for choice in reversed(choices(config, num_devices)):
        if any(_saves_no_less(each, choice) for each in failed):
            continue
        tried = planned(config, choice, plan)
        if tried.fits:
            yield tried
        else:
            failed.append(choice)


def front(plans: list[Plan]) -> list[Plan]:
    """Those that no other beats in memory and in time, the fastest first."""
    best: list[Plan] = []
    for each in sorted(plans, key=lambda plan: (plan.est_step_ms, plan.hbm_gib)):
        if not best or each.hbm_gib < best[-1].hbm_gib:
            best.append(each)
    return best
