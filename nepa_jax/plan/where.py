"""Where a step's time goes: by part of the model, forward and backward apart.

Parts are the named scopes of models, objectives and the step, which the compiler keeps beside every
operation. A fusion counts whole: to the matrix product in it if there is one, else to where its result
comes from.
"""

import re
from collections.abc import Callable, Iterator

from nepa_jax.plan.hlo import COLLECTIVES, FREE, Computation, Op, Program, bytes_of, flops_of

PARTS = (
    *("embed", "norm", "norm1", "qkv", "qk_norm_rope", "attention", "attn_out"),
    *("norm2", "mlp_up", "gelu", "swiglu", "geglu", "mlp_down", "loss", "optimizer"),
)
REST = ("stacking", "copies", "other", "collectives")  # what no scope is around
DIRECTIONS = ("forward", "again", "backward")  # again: computed once more for the backward pass

Table = dict[str, dict[str, float]]
Cost = Callable[[Op, Computation, Program], float]


def by_part(program: Program, ms_per_cycle: float) -> Table:
    """ms of a step by part and direction, from the TPU compiler's cycles."""
    return _summed(program, lambda op, ops, whole: op.cycles * ms_per_cycle, fused=False)


def work_by_part(program: Program) -> dict[str, Table]:
    """``megacycles`` by the compiler's estimate; where it gives none, ``gflop`` of products and ``gib`` moved.

    Moved are all arrays that operations read and write, whichever memory or cache they come from.
    """
    if program.cycles:
        return {"megacycles": by_part(program, 1e-6)}
    return {
        "gflop": _summed(program, lambda op, ops, whole: flops_of(op, ops) / 1e9, fused=True),
        "gib": _summed(program, lambda op, ops, whole: _traffic(op, ops, whole) / 2**30, fused=False),
    }  # fmt: skip


def _summed(program: Program, cost: Cost, fused: bool) -> Table:
    found: Table = {}
    for op, ops, times in program.ops(fused):
        amount = times * cost(op, ops, program)
        if amount:
            part, direction = part_of(op, program)
            row = found.setdefault(part, dict.fromkeys(DIRECTIONS, 0.0))
            row[direction] += amount
    order = [part for part in (*PARTS, *REST) if part in found]
    return {part: found[part] for part in order}


def part_of(op: Op, program: Program) -> tuple[str, str]:
    """(part, direction) of an operation."""
    inside = program.inside(op)
    kinds = {
        each.kind.removesuffix("-start").removesuffix("-done") for each in (op, *inside.values())
    }
    product = next((o for o in inside.values() if o.kind in ("dot", "convolution")), None)
    if kinds & {*COLLECTIVES} and product is None:
        return "collectives", DIRECTIONS[2 if "transpose(" in op.op_name else 0]
    name = (product or op).op_name
    if not name:
        name = next((o.op_name for o in reversed(inside.values()) if o.op_name), "")
    return _part(name, op.kind), _direction(name)


def _part(name: str, kind: str) -> str:
    words = [word for word in re.findall(r"\w+", name) if word in PARTS]
    if words:
        return words[-1]
    if re.search(r"while/body/.*dynamic_(update_)?(index|slice)", name):
        return "stacking"  # a layer's weights taken, its results put with the other layers'
    if kind in ("copy", "copy-start", "transpose"):
        return "copies"
    return "other" if "jvp" in name or not name else "optimizer"


def _direction(name: str) -> str:
    if "rematted_computation" in name:
        return "again"
    return "backward" if "transpose(" in name else "forward"


def _traffic(op: Op, ops: Computation, program: Program) -> float:
    """Bytes that an operation reads and writes."""
    if op.kind in FREE or op.kind.endswith("-done"):
        return 0.0
    inside = program.inside(op)
    read = sum(
        _read(place, bytes_of(ops[name].result), inside)
        for place, name in enumerate(op.operands)
        if name in ops
    )
    return read + _written(op, inside)


def _read(place: int, size: float, inside: Computation) -> float:
    """Of an operand: of what a fusion only takes slices from, those; what it writes into, nothing."""
    given = next((o for o in inside.values() if o.text.find(f" parameter({place})") >= 0), None)
    users = [o for o in inside.values() if given and given.name in o.operands]
    if users and all(o.kind == "dynamic-slice" for o in users):
        return sum(bytes_of(o.result) for o in users)
    if users and all(
        o.kind == "dynamic-update-slice" and o.operands[0] == given.name for o in users
    ):
        return 0.0
    return size


def _written(op: Op, inside: Computation) -> float:
    """Of a result: of an array that a fusion writes a slice into, the slice."""
    root = next((o for o in inside.values() if o.root), op)
    if root.kind == "dynamic-update-slice" and root.operands[1] in inside:
        return bytes_of(inside[root.operands[1]].result)
    return bytes_of(op.result)


def lines_of(table: Table, unit: str) -> Iterator[str]:
    """Parts in lines, directions in columns."""
    whole = sum(sum(row.values()) for row in table.values())
    yield "  " + f"{unit:12}" + "".join(f"{name:>10}" for name in (*DIRECTIONS, "all", "share"))
    for part, row in table.items():
        values = [*(row[name] for name in DIRECTIONS), sum(row.values())]
        yield f"  {part:12}" + "".join(f"{v:10.2f}" for v in values) + f"{values[-1] / whole:10.1%}"
    sums = [sum(row[name] for row in table.values()) for name in DIRECTIONS]
    yield f"  {'all':12}" + "".join(f"{v:10.2f}" for v in (*sums, whole))
