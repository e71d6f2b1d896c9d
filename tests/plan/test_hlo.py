"""Compiled programs are read as what they are: loops count as often as they run, a collective once."""

import jax
import pytest
import small
import tpu_program

from nepa_jax.mesh import make_mesh
from nepa_jax.objectives.base import load_objective
from nepa_jax.plan import hlo
from nepa_jax.step import abstract_batch, abstract_state, make_update


@pytest.fixture(scope="module")
def program() -> hlo.Program:
    return hlo.read(tpu_program.TEXT)


def test_what_a_loop_holds_counts_as_often_as_it_runs(program):
    assert program.times["body"] == program.times["product"] == 3
    assert program.cycles == 3 * (1000 + 20) + 5
    assert program.flops == 3 * 2 * 16 * 256 * 64 * 128


def test_a_collective_counts_once_whatever_carries_it(program):
    found = hlo.collectives(program)
    assert {kind: moved.count for kind, moved in found.items()} == {
        "all-gather": 3,
        "all-reduce": 1,
        "reduce-scatter": 1,
        "collective-permute": 1,
    }
    assert found["all-gather"].bytes == 3 * 64 * 128 * 2
    assert found["all-gather"].received == 3 * 64 * 128 * 2 * 15 / 16  # one of 16 parts is there
    assert found["all-reduce"].received == 2 * 64 * 128 * 4 * 7 / 8
    assert found["reduce-scatter"].received == 64 * 128 * 4 * 3 / 4
    assert found["collective-permute"].received == 8 * 128 * 4
    assert found["all-gather"].largest == 64 * 128 * 2


def test_collectives_of_one_channel_that_no_fusion_carries_count_each():
    """As ``shard_map`` makes them."""
    said = "channel_id=1, replica_groups={{0,1}}, to_apply=%sum"
    text = (
        "%sum (x: f32[], y: f32[]) -> f32[] {\n  %x = f32[] parameter(0)\n}\n"
        "ENTRY %main (a: f32[8]) -> f32[8] {\n"
        "  %a = f32[8]{0} parameter(0)\n"
        f"  %b = f32[8]{{0}} all-reduce(%a), {said}\n"
        f"  ROOT %c = f32[8]{{0}} all-reduce(%b), {said}\n}}\n"
    )
    assert hlo.collectives(hlo.read(text))["all-reduce"].bytes == 2 * 8 * 4


@pytest.mark.parametrize(
    ("window", "labels", "sides", "macs"),
    [
        # The heads of a product lie along a padded window: of 3 · 3 places one in three is no padding.
        ("size=3 pad=2_2 rhs_reversal=1", "bf0_i0o->b0f", ("2,8,1", "8,3,5", "2,3,5"), 2 * 3 * 8 * 5),
        # A batch of 4: spread so that each meets its own.
        ("size=4 stride=3 pad=0_0 lhs_dilate=4", "b0f_0io->b0f", ("2,4,8", "4,8,5", "2,4,5"), 2 * 4 * 8 * 5),
    ],
)  # fmt: skip
def test_of_a_convolution_padding_is_no_work(window, labels, sides, macs):
    x, w, y = sides
    text = (
        f"ENTRY %main (x: f32[{x}], w: f32[{w}]) -> f32[{y}] {{\n"
        f"  %x = f32[{x}]{{2,1,0}} parameter(0)\n  %w = f32[{w}]{{2,1,0}} parameter(1)\n"
        f"  ROOT %c = f32[{y}]{{2,1,0}} convolution(%x, %w), window={{{window}}}, dim_labels={labels}\n}}\n"
    )
    assert hlo.read(text).flops == 2 * macs


@pytest.mark.parametrize("method", ["nepa", "mae"])
def test_the_products_of_a_real_step_are_those_that_the_method_counts(method):
    config = small.resolved(method, model__embed_dim="64")
    objective, mesh = load_objective(config.objective.name), make_mesh(config, jax.devices()[:1])
    state = abstract_state(config, objective, mesh)
    update = make_update(config, objective, state)
    compiled = update.lower(state, abstract_batch(config, False, mesh)).compile()
    program, expected = hlo.read(compiled.as_text()), objective.describe(config).flops * 8
    assert program.flops == pytest.approx(expected, rel=0.05)
