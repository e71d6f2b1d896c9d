"""Options of the compiler: known to this jaxlib, for GPUs alone, and never against the user's own."""

import jax
import pytest

from nepa_jax.base.compiler import OPTIONS, compiler_options


@pytest.mark.parametrize("platform", OPTIONS)
def test_this_jaxlib_knows_them_all(platform):
    double = jax.jit(lambda x: 2 * x, compiler_options=OPTIONS[platform])
    assert double(1.0) == 2.0  # an unknown name is an error


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_where_none_was_found_to_pay_the_compilers_own_stay(platform):
    assert compiler_options(platform) is None


def test_the_users_flags_come_first(monkeypatch):
    name = "xla_gpu_enable_latency_hiding_scheduler"
    monkeypatch.setenv("XLA_FLAGS", f"--{name}=false")
    assert {*OPTIONS["gpu"]} - {*compiler_options("gpu")} == {name}
