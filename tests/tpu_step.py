"""Compiles a step for TPUs that are not here and prints what it needs. Started by test_tpu.py."""

import json
import sys

import jax
import numpy as np
import small
from hlo import collectives
from jax.experimental import topologies

from nepa_jax.mesh import batch_sharding, make_mesh
from nepa_jax.objectives.base import load_objective
from nepa_jax.step import abstract_state, make_update

BATCH = 64


def main(topology: str, fsdp: str) -> None:
    config = small.resolved(
        "nepa", mesh__fsdp=fsdp, data__batch_size=str(BATCH), model__embed_dim="512",
        model__num_heads="4", model__depth="4", run__dtype="bfloat16", run__remat="names",
    )  # fmt: skip
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh, objective = make_mesh(config, list(devices)), load_objective(config.objective.name)
    rows = batch_sharding(mesh)
    batch = {
        "image": jax.ShapeDtypeStruct((BATCH, 16, 16, 3), np.uint8, sharding=rows),
        "row": jax.ShapeDtypeStruct((BATCH,), np.int32, sharding=rows),
    }
    state = abstract_state(config, objective, mesh)
    compiled = make_update(config, objective, state).lower(state, batch).compile()
    memory = compiled.memory_analysis()
    found = {
        "peak": memory.peak_memory_in_bytes,
        "arguments": memory.argument_size_in_bytes,
        "collectives": collectives(compiled.as_text()),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
