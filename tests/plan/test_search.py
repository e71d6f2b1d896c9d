"""What fits is found with few compilations, since choices are ordered by what they save."""

from itertools import pairwise

import pytest
import small

from nepa_jax.config import apply_overrides
from nepa_jax.plan.estimate import Plan
from nepa_jax.plan.search import (
    REMAT,
    all_that_fit,
    chain,
    changed,
    choices,
    first_that_fits,
    front,
)

LIMIT = 16.0


class Compiler:
    """Needs less with more of each; takes longer the more it computes again or gathers."""

    def __init__(self, gib: float):
        self.gib = gib
        self.calls = 0

    def __call__(self, config) -> Plan:
        self.calls += 1
        fsdp, accum, remat = (
            config.mesh.fsdp,
            config.optim.accum_steps,
            REMAT.index(config.run.remat),
        )
        needed = self.gib / fsdp**0.5 / accum / (1 + remat)
        step_ms = 100 + 10 * remat + accum + fsdp / 10
        return Plan("v5e:4x4", "compiler", needed <= LIMIT, needed, LIMIT, {}, 1.0, 1.0, step_ms, 0.5)  # fmt: skip


@pytest.fixture
def config():
    return small.resolved("nepa", data__batch_size="1024")


def test_choices_differ_in_mesh_remat_and_microbatches_and_all_are_valid(config):
    found = choices(config, 16)
    assert {each["mesh.fsdp"] for each in found} == {1, 16}
    assert {each["run.remat"] for each in found} == {*REMAT}
    assert {each["optim.accum_steps"] for each in found} == {1, 2, 8, 32}


def test_fsdp_is_no_wider_than_every_axis_allows():
    config = small.resolved("mae", data__batch_size="1024", objective__decoder_embed_dim="24")
    assert {each["mesh.fsdp"] for each in choices(config, 16)} == {1, 8}
    assert {each["mesh.fsdp"] for each in choices(config, 4)} == {1, 4}


@pytest.mark.parametrize("gib", [1.0, 40.0, 300.0, 3000.0])
def test_the_first_that_fits_is_found_by_halving(config, gib):
    compiler = Compiler(gib)
    found = first_that_fits(config, 16, compiler)
    assert found.fits and compiler.calls <= 5
    one_by_one = (Compiler(gib)(changed(config, each)) for each in chain(config, 16))
    assert found.est_step_ms == next(plan.est_step_ms for plan in one_by_one if plan.fits)
    assert all(option.startswith("--config.") for option in found.overrides)
    again = small.resolved("nepa", data__batch_size="1024")
    apply_overrides(again, dict(o.removeprefix("--config.").split("=") for o in found.overrides))
    assert Compiler(gib)(again).hbm_gib == found.hbm_gib


def test_where_nothing_fits_nothing_is_promised(config):
    assert first_that_fits(config, 16, Compiler(1e9)) is None


def test_what_saves_less_than_one_that_does_not_fit_is_not_tried(config):
    compiler = Compiler(300.0)
    fitting = list(all_that_fit(config, 16, compiler))
    assert compiler.calls < len(choices(config, 16))
    really = [Compiler(300.0)(changed(config, each)) for each in choices(config, 16)]
    assert len(fitting) == sum(plan.fits for plan in really)


def test_the_front_has_no_choice_that_another_beats(config):
    best = front(list(all_that_fit(config, 16, Compiler(300.0))))
    assert len(best) > 1
    for one, next_ in pairwise(best):
        assert one.est_step_ms < next_.est_step_ms and one.hbm_gib > next_.hbm_gib
