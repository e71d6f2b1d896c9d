"""What the compiler is told beside the program: the one place where options of XLA are chosen."""

import os

# Of what NVIDIA's JAX-Toolbox names for training (docs/GPU_performance.md; its level O1 holds both), the
# names that jax 0.10 and 0.12 both know. Communication between GPUs hides behind computation, and a scan
# runs two layers in turns, so that none waits until what the other carries is copied.
_NAMES = ("xla_gpu_enable_latency_hiding_scheduler", "xla_gpu_enable_while_loop_double_buffering")
OPTIONS: dict[str, dict[str, bool]] = {"gpu": dict.fromkeys(_NAMES, True)}


def compiler_options(platform: str) -> dict[str, bool] | None:
    """For ``jax.jit`` of a training step on ``cpu``, ``gpu`` or ``tpu``; None: the compiler's own.

    What the user has set in ``XLA_FLAGS`` stays as it is there.
    """
    own = os.environ.get("XLA_FLAGS", "")
    chosen = {name: on for name, on in OPTIONS.get(platform, {}).items() if name not in own}
    return chosen or None
