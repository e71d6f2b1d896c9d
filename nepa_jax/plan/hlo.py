"""Reads compiled programs: how often each operation runs in a step, and what it computes and moves.

XLA's own analysis counts the body of a loop once; here every operation is counted as often as the
loops around it run.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

COLLECTIVES = (
    *("all-reduce", "all-gather", "reduce-scatter"),
    *("all-to-all", "ragged-all-to-all", "collective-permute"),
)
# What takes no time of its own.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"),
    *("conditional", "partition-id", "replica-id", "after-all"),
}
_HEAD = re.compile(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_OP = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+\d*)\w*\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)


@dataclass(frozen=True)
class Op:
    """A line of a program."""

    name: str
    kind: str  # such as fusion, convolution
    result: str  # its type, as written
    operands: tuple[str, ...]  # names
    text: str  # all that is said of it
    root: bool

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from: scopes and primitive, divided by ``/``."""
        return self.said(r'op_name="([^"]*)"')

    def said(self, pattern: str) -> str:
        found = re.search(pattern, self.text)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """Computations it runs."""
        branches = self.said(r"branch_computations=\{([^}]*)\}")
        return _CALLED.findall(self.text) + re.findall(r"%?([\w.\-]+)", branches)

    @property
    def cycles(self) -> int:
        """By the TPU compiler's own estimate; 0 where it gives none."""
        return int(self.said(r'"estimated_cycles":"(\d+)"') or 0)


Computation = dict[str, Op]


@dataclass
class Program:
    """A compiled program."""

    computations: dict[str, Computation]  # the last is the entry

    @cached_property
    def _fused(self) -> set[str]:
        """The computations inside of fusions."""
        ops = (op for each in self.computations.values() for op in each.values())
        return {name for op in ops if op.kind == "fusion" for name in op.called}

    @cached_property
    def times(self) -> dict[str, int]:
        """How often each computation runs in a step; of branches, each."""
        times = dict.fromkeys(self.computations, 0)
        times[next(reversed(times))] = 1
        for name in reversed(times):  # what is called stands before
            for op in self.computations[name].values():
                rounds = self.rounds(op) if op.kind == "while" else 1
                for called in op.called:
                    times[called] += times[name] * rounds
        return times

    def rounds(self, loop: Op) -> int:
        """Of a loop that counts from 0; as JAX's scans do."""
        known = loop.said(r'"known_trip_count":\{"n":"(\d+)"')
        if known:
            return int(known)
        todo, limits = [loop.said(r"condition=%?([\w.\-]+)")], [1]
        while todo:
            for op in self.computations[todo.pop()].values():
                limits += [int(n) for n in re.findall(r"^s\d+\[\].* constant\((\d+)\)", op.text)]
                todo += op.called
        return max(limits)

    def ops(self, fused: bool) -> Iterator[tuple[Op, Computation, int]]:
        """Every operation with its computation and how often it runs.

        Args:
            fused: those inside of fusions too.
        """
        for name, ops in self.computations.items():
            if self.times[name] and (fused or name not in self._fused):
                yield from ((op, ops, self.times[name]) for op in ops.values())

    @property
    def flops(self) -> float:
        """Of all matrix products of a step."""
        return sum(times * flops_of(op, ops) for op, ops, times in self.ops(fused=True))

    @property
    def cycles(self) -> int:
        """The compiler's estimates, summed."""
        return sum(times * op.cycles for op, _, times in self.ops(fused=False))

    def inside(self, op: Op) -> Computation:
        """What a fusion is made of; of other operations nothing."""
        return self.computations[op.called[0]] if op.kind == "fusion" else {}


def read(text: str) -> Program:
    """A program from the text of a compiled one."""
    computations: dict[str, Computation] = {}
    ops: Computation = {}
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            found = _OP.match(line)
            if found:
                op = _op(line, found)
                ops[op.name] = op
        elif head := _HEAD.match(line):
            ops = computations.setdefault(head[1], {})
    return Program(computations)


def _op(line: str, found: re.Match[str]) -> Op:
    depth, end = 1, found.end()
    while depth and end < len(line):
        depth += {"(": 1, ")": -1}.get(line[end], 0)
        end += 1
    operands = re.findall(r"%([\w.\-]+)", line[found.end() : end])
    root, name, result, kind = found.groups()
    return Op(name, kind, result, tuple(operands), line[found.start(3) :], bool(root))


# Shapes


def shapes(result: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, sides) of every array of a type."""
    return [(t, _numbers(sides)) for t, sides in _SHAPE.findall(result)]


def bytes_of(result: str) -> int:
    """Of all arrays of a type."""
    return sum(math.prod(sides) * _itemsize(dtype) for dtype, sides in shapes(result))


def _itemsize(dtype: str) -> float:
    bits = re.search(r"\d+", dtype)
    return int(bits[0]) / 8 if bits else 1  # pred


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text))


# Matrix products


def flops_of(op: Op, ops: Computation) -> float:
    """Of a matrix product, two per multiply-add; of other operations 0."""
    if op.kind == "dot":
        return 2.0 * math.prod(_sides(op)) * math.prod(
            _sides(ops[op.operands[0]])[axis]
            for axis in _numbers(op.said(r"lhs_contracting_dims=\{([\d,]*)\}"))
        )  # fmt: skip
    return _convolution_flops(op, ops) if op.kind == "convolution" else 0.0


def _sides(op: Op) -> tuple[int, ...]:
    return shapes(op.result)[0][1]


def _convolution_flops(op: Op, ops: Computation) -> float:
    """A TPU's products are convolutions; batch axes of a product lie along padded windows."""
    labels = re.match(r"(\w+)_(\w+)->(\w+)", op.said(r"dim_labels=([\w>\-]+)"))
    lhs, rhs, out = (
        dict(zip(names, _sides(each), strict=True))
        for names, each in zip(
            labels.groups(), (ops[op.operands[0]], ops[op.operands[1]], op), strict=True
        )
    )
    window = op.said(r"window=\{([^}]*)\}")
    spatial = sorted(name for name in rhs if name.isdigit())
    pairs = 1
    for place, axis in enumerate(spatial):
        how = {k: v.split("x")[place] for k, v in re.findall(r"(\w+)=(\S+)", window)}
        pairs *= _pairs(lhs[axis], rhs[axis], out[axis], how)
    return 2.0 * out["b"] * out["f"] * rhs["i"] * pairs


def _pairs(size: int, kernel: int, out: int, how: dict[str, str]) -> int:
    """How many (place, kernel element) of an axis meet an element and no padding."""
    stride, spread = int(how.get("stride", 1)), int(how.get("lhs_dilate", 1))
    dilate, low = int(how.get("rhs_dilate", 1)), int(how.get("pad", "0_0").split("_")[0])
    last = (size - 1) * spread
    return sum(
        0 <= (at := place * stride + element * dilate - low) <= last and at % spread == 0
        for place in range(out)
        for element in range(kernel)
    )


# Collectives


@dataclass
class Moved:
    """What collectives of one kind move in a step, seen from one device."""

    count: int = 0
    bytes: float = 0.0  # of whole results; of a reduce-scatter, of what is reduced
    largest: float = 0.0  # bytes of one
    received: float = 0.0  # bytes that must come into the device, whichever way it is done


def collectives(program: Program) -> dict[str, Moved]:
    """Of a step, by kind. One that several fusions carry on has one channel there, and counts once.

    Outside of fusions a channel says nothing: those of one ``shard_map`` all have the same.
    """
    found: dict[str, Moved] = {}
    seen = set()
    for name, ops in program.computations.items():
        for op in ops.values():
            kind = op.kind.removesuffix("-start")
            carried = op.said(r"channel_id=(\d+)") if name in program._fused else ""
            if kind not in COLLECTIVES or carried in seen or not program.times[name]:
                continue
            seen |= {carried} - {""}
            scattered = kind == "reduce-scatter" or name.startswith("all-reduce-scatter")
            kind = "reduce-scatter" if scattered else kind
            moved, times = found.setdefault(kind, Moved()), program.times[name]
            size = _moved_bytes(op, ops)
            others = 1 - 1 / (group_size(op) or math.inf)  # a permutation has no groups
            moved.count += times
            moved.bytes += times * size
            moved.largest = max(moved.largest, size)
            moved.received += times * size * others * (2 if kind == "all-reduce" else 1)
    return found


def _moved_bytes(op: Op, ops: Computation) -> float:
    """The larger of what goes in and what comes out; of an all-reduce the two are the same."""
    given = sum(bytes_of(ops[name].result) for name in op.operands if name in ops)
    if op.kind.endswith("-start"):  # its result holds both
        return max(given, bytes_of(op.result) - given)
    return max(given, bytes_of(op.result))


def group_size(op: Op) -> int:
    """How many devices take part together; 0 where that is not said."""
    groups = op.said(r"replica_groups=((?:mesh)?[\[{]\{?[^\]}]*[\]}])")
    if groups.startswith("mesh"):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", groups))
        used = re.findall(r"'(\w+)'", op.said(r"replica_groups=mesh\[[^\]]*\].*?\{([^}]*)\}"))
        return math.prod(int(sides[axis]) for axis in used)
    numbers = _numbers(groups)
    return numbers[1] if groups.startswith("[") else len(numbers)
