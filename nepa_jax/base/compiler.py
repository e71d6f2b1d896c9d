"""What the compiler is told beside the program: the one place where options of XLA are chosen."""

import os

# What NVIDIA's JAX-Toolbox recommends for training as optimisation level O1 (docs/GPU_performance.md),
# by the names that jax 0.10 and 0.12 both know. The first three hide communication between GPUs behind
# computation; the last one runs two layers of a scan in turns, so that none waits for copies of the other.
_OVERLAP = (
    "xla_gpu_enable_latency_hiding_scheduler",
    "xla_gpu_enable_pipelined_all_gather",
    "xla_gpu_enable_pipelined_reduce_scatter",
    "xla_gpu_enable_while_loop_double_buffering",
)
OPTIONS: dict[str, dict[str, bool]] = {"gpu": dict.fromkeys(_OVERLAP, True)}


def compiler_options(platform: str) -> dict[str, bool] | None:
    """For ``jax.jit`` of a training step on ``cpu``, ``gpu`` or ``tpu``; None: the compiler's own.

    What the user has set in ``XLA_FLAGS`` stays as it is there.
    """
    own = os.environ.get("XLA_FLAGS", "")
    chosen = {name: on for name, on in OPTIONS.get(platform, {}).items() if name not in own}
    return chosen or None
