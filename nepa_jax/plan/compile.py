"""The step that the loop runs, compiled for TPUs that are not here, by their own compiler.

In a process of its own, which reads what to compile from stdin: the compiler may end the process that
gives it a topology it does not like.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from ml_collections import ConfigDict

from nepa_jax import config as configs
from nepa_jax.base.errors import UserError, in_short
from nepa_jax.base.waiting import told
from nepa_jax.mesh import make_mesh, mesh_shape
from nepa_jax.objectives.base import load_objective
from nepa_jax.plan import hlo
from nepa_jax.plan.chips import GIB, Chip, Topology, topology_of
from nepa_jax.plan.estimate import Plan, device_bytes, state_bytes
from nepa_jax.plan.where import by_part
from nepa_jax.step import abstract_batch, abstract_state, make_update, with_heads

# The compiler asks a cloud's metadata and names of hosts for what this machine is: it is no TPU.
ALONE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several plans at a time
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # the time that compiling takes is told
    "XLA_FLAGS": "",
}


def has_compiler() -> bool:
    """Whether the compiler for TPUs is installed.

    Raises:
        UserError: it is, in a version that this jax does not go with.
    """
    try:
        found = importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    wanted = wanted_compiler()
    if wanted and f"{found}.".startswith(f"{wanted}."):
        return True
    raise UserError(
        f"libtpu {found} is installed, and jax {importlib.metadata.version('jax')} goes with "
        f"libtpu {wanted}.*; try: pip install 'libtpu=={wanted}.*'"
    )


def wanted_compiler() -> str:
    """The beginning of the version of libtpu that the installed jax asks for; "" if it asks for none."""
    asked = " ".join(importlib.metadata.requires("jax") or ())
    found = re.search(r"libtpu==([\d.]*\d)", asked)
    return found[1] if found else ""


def compiled(config: ConfigDict, topology: Topology, where: bool = False) -> Plan:
    """A plan by the compiler.

    Args:
        config: resolved.
        where: with the step's parts.

    Raises:
        UserError: there is no such topology, or the mesh does not fit it, or the batch the mesh; or
            the compiler ended otherwise than with a program.
    """
    mesh_shape(config, topology.num_devices)
    asked = dict(config=config.to_dict(), topology=topology.name, where=where)
    paths = os.pathsep.join(filter(None, sys.path))  # objectives of one's own
    with told(f"compiling for {topology.name}"):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "nepa_jax.plan.compile"],
            input=json.dumps(asked), env=os.environ | ALONE | {"PYTHONPATH": paths},
            capture_output=True, text=True,
        )  # fmt: skip
    lines = done.stdout.splitlines()
    answer = json.loads(lines[-1]) if done.returncode == 0 and lines else {}
    if "topology" in answer:
        return Plan(**answer)
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    why = answer.get("error") or f"the compiler ended with code {done.returncode}: {last[:300]}"
    raise UserError(f"--topology={topology.name}: {why}")


def main() -> None:
    """Compiles what stdin asks for and prints the plan, or ``{"error": …}``, as a line of JSON."""
    asked = json.load(sys.stdin)
    config = configs.from_json(json.dumps(asked["config"]))
    try:
        answer = asdict(_plan(config, topology_of(asked["topology"]), asked["where"]))
    except UserError as error:
        answer = {"error": str(error)}
    print("\n" + json.dumps(answer))


def _plan(config: ConfigDict, topology: Topology, where: bool) -> Plan:
    objective, chip = load_objective(config.objective.name), topology.chip
    mesh = make_mesh(config, _devices(topology))
    state, batch = abstract_state(config, objective, mesh), abstract_batch(config, False, mesh)
    state = with_heads(state, config, objective)
    lowered = make_update(config, objective, state).lower(state, batch)
    memory = {name: size / GIB for name, size in state_bytes(state).items()}
    known = dict(
        topology=topology.name,
        by="compiler",
        hbm_limit_gib=chip.hbm_gib,
        model_flops=objective.describe(config).flops * config.data.batch_size,
    )
    began, cpu_began = time.perf_counter(), time.process_time()
    try:
        made = lowered.compile()
    except Exception as error:
        needed = _needed_gib(str(error))
        if needed is None:
            raise UserError(f"the compiler says: {in_short(error)}") from error
        memory["activations and temporaries"] = needed - sum(memory.values())
        return Plan(
            fits=False, hbm_gib=needed, memory_gib=memory, program_flops=None, est_step_ms=None,
            est_mfu=None, **known,
        )  # fmt: skip
    took = time.perf_counter() - began, time.process_time() - cpu_began
    sizes, program = made.memory_analysis(), hlo.read(made.as_text())
    heads = device_bytes(state.heads) / GIB  # which lie there beside the program's arguments
    step_s = program.cycles / chip.clock_hz
    memory["batch"] = device_bytes(batch) / GIB
    memory["padding"] = sizes.argument_size_in_bytes / GIB + heads - sum(memory.values())
    peak = sizes.peak_memory_in_bytes / GIB + heads
    memory["activations and temporaries"] = peak - sum(memory.values())
    return Plan(
        fits=peak <= chip.hbm_gib,
        hbm_gib=peak,
        memory_gib=memory,
        program_flops=program.flops * topology.num_devices,
        est_step_ms=1e3 * step_s,
        est_mfu=known["model_flops"] / step_s / (topology.num_devices * chip.peak_flops),
        collectives=_collectives(program, chip),
        compile_s=took[0],
        compile_cpu_s=took[1],
        where=by_part(program, 1e3 / chip.clock_hz) if where else None,
        **known,
    )


def _devices(topology: Topology) -> list[Any]:
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=topology.name,
            chip_config_name=topology.chip.compiler_name,
        )
    except Exception as error:
        raise UserError(f"the compiler knows no such topology ({in_short(error)})") from error
    return list(found.devices)


def _needed_gib(error: str) -> float | None:
    """What the compiler would have needed, where it says that there is less."""
    found = re.search(r"Used ([\d.]+)([KMGT]) of", error)
    found = found or re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM", error)
    return float(found[1]) * 1024.0 ** ("KMGT".index(found[2]) - 2) if found else None


def _collectives(program: hlo.Program, chip: Chip) -> dict[str, dict[str, float]]:
    """By kind: how many a step runs, bytes of all and of the largest, ms that the links need at least."""
    return {
        kind: dict(
            count=moved.count,
            bytes=moved.bytes,
            largest=moved.largest,
            min_ms=1e3 * moved.received / chip.link_bytes_per_s,
        )
        for kind, moved in hlo.collectives(program).items()
    }


if __name__ == "__main__":
    main()
