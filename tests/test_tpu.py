"""The step compiled for a TPU by its own compiler, where that is installed (pip install libtpu)."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("libtpu")

SCRIPT = Path(__file__).parent / "tpu_step.py"
TOPOLOGY = "v5e:2x2"  # four chips


@pytest.fixture(scope="module")
def steps() -> dict[int, dict]:
    """What the step needs, by the size of fsdp."""
    return {fsdp: compiled(fsdp) for fsdp in (1, 4)}


def compiled(fsdp: int) -> dict:
    # In a process of its own: the compiler ends its process when a topology does not suit it.
    env = os.environ | {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), TOPOLOGY, str(fsdp)],
        env=env | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_fully_sharded_state_takes_its_share_of_a_chip(steps):
    assert steps[4]["arguments"] < 0.3 * steps[1]["arguments"]
    assert steps[4]["peak"] < steps[1]["peak"]


def test_data_parallel_only_reduces(steps):
    assert set(steps[1]["collectives"]) == {"all-reduce"}


def test_fully_sharded_moves_weights_and_never_activations(steps):
    """A weight has the width among its sides; an activation has the images of a chip in front."""
    moved = steps[4]["collectives"]
    assert "all-gather" in moved and "all-to-all" not in moved
    for shape in moved["all-gather"]:
        assert math.prod(shape) <= 512 * 2048 and shape[0] != 16, shape
