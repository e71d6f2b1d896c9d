"""Every operation is of one part of the model and one direction."""

import pytest
import tpu_program

from nepa_jax.plan.hlo import read
from nepa_jax.plan.where import by_part, work_by_part

LINE = 'ENTRY %main () -> f32[8] {{\n  ROOT %x = f32[8]{{0}} {kind}(), {said}backend_config={{"estimated_cycles":"7"}}\n}}\n'


def test_a_fusion_is_of_the_product_in_it_and_repeated_work_stands_apart():
    table = by_part(read(tpu_program.TEXT), ms_per_cycle=0.5)
    assert table == {
        "norm": {"forward": 0.0, "again": 30.0, "backward": 0.0},
        "mlp_up": {"forward": 1500.0, "again": 0.0, "backward": 0.0},
        "collectives": {"forward": 0.0, "again": 0.0, "backward": 2.5},
    }
    assert sum(sum(row.values()) for row in table.values()) == 0.5 * read(tpu_program.TEXT).cycles


@pytest.mark.parametrize(
    ("op_name", "part", "direction"),
    [
        ("jit(update)/jvp(qkv)/dot_general", "qkv", "forward"),
        ("jit(update)/jvp(attention)/norm/mul", "norm", "forward"),  # the innermost scope
        ("jit(update)/transpose(jvp(qkv))/dot_general", "qkv", "backward"),
        ("jit(update)/transpose(jvp())/while/body/checkpoint/rematted_computation/gelu/erf", "gelu", "again"),
        ("jit(update)/jvp()/while/body/jit(dynamic_update_index_in_dim)/dynamic_update_slice", "stacking", "forward"),
        ("jit(update)/jvp()/add", "other", "forward"),
        ("jit(update)/mul", "optimizer", "forward"),  # outside of what is differentiated
    ],
)  # fmt: skip
def test_scopes_name_the_part(op_name, part, direction):
    said = f'metadata={{op_name="{op_name}"}}, '
    table = by_part(read(LINE.format(kind="add", said=said)), ms_per_cycle=1.0)
    assert [(name, row[direction]) for name, row in table.items()] == [(part, 7.0)]


def test_a_copy_that_no_scope_is_around_is_a_copy():
    assert list(by_part(read(LINE.format(kind="copy", said="")), 1.0)) == ["copies"]


def test_where_no_cycles_are_told_products_and_traffic_are():
    assert work_by_part(read(tpu_program.TEXT)).keys() == {"megacycles"}
    work = work_by_part(read(tpu_program.TEXT.replace("estimated_cycles", "nothing")))
    assert work["gflop"]["mlp_up"]["forward"] == pytest.approx(3 * 2 * 16 * 256 * 64 * 128 / 1e9)
    copied = 2 * 16 * 256 * 64 * 2  # read and written
    assert work["gib"]["norm"]["again"] == pytest.approx(3 * copied / 2**30)


SLICED = """\
%take (stack: f32[12,100], i: s32[], row: f32[1,100]) -> f32[12,100] {
  %stack = f32[12,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,100]{1,0} parameter(2)
  ROOT %put = f32[12,100]{1,0} dynamic-update-slice(%stack, %row, %i, %i)
}

ENTRY %main (stack: f32[12,100], i: s32[], row: f32[1,100]) -> f32[12,100] {
  %stack = f32[12,100]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1,100]{1,0} parameter(2)
  ROOT %f = f32[12,100]{1,0} fusion(%stack, %i, %row), kind=kLoop, calls=%take, metadata={op_name="jit(update)/jvp(loss)/x"}
}
"""


def test_what_is_put_into_a_stack_is_all_that_is_written():
    traffic = work_by_part(read(SLICED))["gib"]["loss"]["forward"] * 2**30
    assert traffic == 2 * 400 + 4
