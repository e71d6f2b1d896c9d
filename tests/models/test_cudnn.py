"""cuDNN's attention is taken where it compiles, and a line says why where it does not. No GPU is needed."""

import jax
import jax.numpy as jnp
import pytest
import small

from nepa_jax.mesh import make_mesh
from nepa_jax.models import cudnn

SHAPE = (2, 16, 2, 8)


@pytest.fixture(autouse=True)
def forget():
    cudnn._works.cache_clear()


def test_float32_is_xlas_without_a_word(capsys):
    assert cudnn.implementation(jnp.ones(SHAPE), True) is None
    assert not capsys.readouterr().err


def test_where_it_does_not_work_one_line_says_why_once(capsys):
    for _ in range(2):
        assert cudnn.implementation(jnp.ones(SHAPE, jnp.bfloat16), True) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: attention [16, 2, 8] by XLA, not cuDNN (")


def test_what_compiles_is_taken_also_while_a_step_is_traced_for_a_mesh(monkeypatch, capsys):
    monkeypatch.setattr(cudnn, "TRIED", "xla")  # in cuDNN's place: it compiles here
    mesh, found = make_mesh(small.resolved("nepa")), []

    @jax.jit
    def step(q: jax.Array) -> jax.Array:
        def block(q, _):
            found.append(cudnn.implementation(q, True))
            return q, None

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.lax.scan(block, q, None, length=2)[0]

    jax.grad(lambda q: jnp.sum(step(q).astype(jnp.float32)))(jnp.ones(SHAPE, jnp.bfloat16))
    assert {*found} == {"xla"}, capsys.readouterr().err
