"""Reads the text of compiled programs: loops, cycles that XLA:TPU estimates, kernels and convolutions of XLA:GPU."""

import re
from collections import Counter
from typing import Any, NamedTuple

COLLECTIVES = frozenset(
    f"{kind}{when}"
    for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    for when in ("", "-start")
)
HOST = frozenset(("infeed", "outfeed", "send", "recv"))
# What XLA:GPU launches no kernel for. The second half of an asynchronous pair counts with the first.
_FREE = frozenset(
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id", "replica-id", "after-all")
)
_CONTROL = frozenset(("while", "conditional", "call"))
_CONVOLUTION = re.compile(r'custom_call_target="__cudnn\$(conv\w+)"')


class Instruction(NamedTuple):
    """An instruction of an optimised program."""

    opcode: str
    line: str


class Program(NamedTuple):
    """The text of a compiled program, taken apart."""

    computations: dict[str, list[Instruction]]
    entry: str


class Loop(NamedTuple):
    """A loop: its body, how often it turns (0: not known), and the number of loops around it."""

    body: str
    turns: int
    depth: int


def parse(text: str) -> Program:
    """Returns the computations of a compiled program's text."""
    found: dict[str, list[Instruction]] = {}
    name, entry = "", ""
    for line in text.splitlines():
        # "%name (arguments) -> result {", perhaps with ENTRY before it; an instruction has a " = ".
        if begin := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            name = begin[2]
            found[name] = []
            entry = name if begin[1] else entry
        elif line.startswith("}"):
            name = ""
        elif name and (made := re.match(r"\s+(?:ROOT )?%?[\w.-]+ = (?:\(.*?\)|\S+) ([\w-]+)\(", line)):
            found[name].append(Instruction(made[1], line))
    return Program(found, entry)


def _called(name: str, line: str) -> str:
    found = re.search(rf"{name}=%?([\w.-]+)", line)
    return found[1] if found else ""


def _turns(program: Program, line: str) -> int:
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known[1])
    # XLA:TPU keeps only the comparison with the bound.
    bounds = [
        int(bound[1])
        for made in program.computations.get(_called("condition", line), ())
        if made.opcode == "constant" and (bound := re.search(r"constant\((\d+)\)", made.line))
    ]
    return bounds[0] if len(bounds) == 1 else 0


def loops(program: Program) -> list[Loop]:
    """Returns all loops that the entry computation reaches through loops, branches and calls."""
    found: list[Loop] = []

    def visit(name: str, depth: int) -> None:
        for made in program.computations.get(name, ()):
            if made.opcode == "while":
                body = _called("body", made.line)
                found.append(Loop(body, _turns(program, made.line), depth))
                visit(body, depth + 1)
            else:
                for inner in _inner(made):
                    visit(inner, depth)

    visit(program.entry, 0)
    return found


def _inner(made: Instruction) -> list[str]:
    """Returns the computations that an instruction runs as they are; a fusion is one kernel."""
    if made.opcode == "call":
        return [_called("to_apply", made.line)]
    if made.opcode == "conditional":
        several = re.search(r"branch_computations=\{([^}]*)\}", made.line)
        if several:
            return [name.strip().lstrip("%") for name in several[1].split(",")]
        return [_called(name, made.line) for name in ("true_computation", "false_computation")]
    return []


def cycles(program: Program, name: str) -> int:
    """Returns the cycles that XLA:TPU estimates for one pass through a computation; inner loops count each turn."""
    total = 0
    for made in program.computations.get(name, ()):
        if estimated := re.search(r'"estimated_cycles":"(\d+)"', made.line):
            total += int(estimated[1])
        if made.opcode == "while":
            total += max(1, _turns(program, made.line)) * cycles(program, _called("body", made.line))
        inner = [cycles(program, other) for other in _inner(made)]
        total += max(inner, default=0) if made.opcode == "conditional" else sum(inner)
    return total


def flat(program: Program, name: str) -> list[Instruction]:
    """Returns the instructions of a computation, with those of inner loops (once), branches and calls."""
    found = []
    for made in program.computations.get(name, ()):
        found.append(made)
        for inner in [_called("body", made.line)] if made.opcode == "while" else _inner(made):
            found += flat(program, inner)
    return found


def kernels(instructions: list[Instruction]) -> int:
    """Returns how many instructions XLA:GPU launches a kernel, a library's function or a copy for."""
    return sum(made.opcode not in _FREE | _CONTROL and not made.opcode.endswith("-done") for made in instructions)


def convolutions(instructions: list[Instruction]) -> dict[str, int]:
    """Returns {"convForward 3x3 groups 8": how many} of the calls of cuDNN."""
    found: Counter[str] = Counter()
    for made in instructions:
        if kind := _CONVOLUTION.search(made.line):
            window = re.search(r"window=\{size=(\S+?)[ }]", made.line)
            groups = re.search(r"feature_group_count=(\d+)", made.line)
            found[f"{kind[1]} {window[1] if window else '1'} groups {groups[1] if groups else 1}"] += 1
    return dict(found.most_common())


def summary(program: Program, body: str) -> dict[str, Any]:
    """Returns what one pass through a computation costs, as far as the text says."""
    inside = flat(program, body)
    opcodes = Counter(made.opcode for made in inside)
    return {
        "estimated_cycles": cycles(program, body),
        "kernels": kernels(inside),
        "convolutions": convolutions(inside),
        "collectives": sum(opcodes[kind] for kind in COLLECTIVES),
        "host_transfers": sum(opcodes[kind] for kind in HOST),
    }
