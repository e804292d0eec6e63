"""Reads compiled programs: kernels of a training step, collectives, and transfers to and from the host."""

import re
from typing import NamedTuple

from jaxpt.engine.period import STEPS

_COLLECTIVES = (
    *("all-gather", "all-reduce", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast", "reduce-scatter"),
)
_HOST = ("infeed", "outfeed", "send", "recv")
_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "add-dependency", "domain", "copy-start"),
}
"""Opcodes that launch nothing; `copy-start` copies in the background."""
_LAUNCHED = {"fusion", "custom-call", "reduce", "dot", "convolution", "copy", "sort", "scatter", "gather"}
"""Opcodes that launch something even for a single number."""
_TARGETS_WITHOUT_WORK = {"AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"}
_NAME = r"%?([\w.-]+)"
_COMPUTATION = re.compile(rf"(?:ENTRY )?{_NAME} .*\{{$")
_INSTRUCTION = re.compile(rf"\s*(ROOT )?{_NAME} = (.*?) ([a-z][\w-]*)\((.*)$")
_CALLED = re.compile(rf"(?:calls|to_apply|body|condition|true_computation|false_computation)={_NAME}")
_CALLED_LISTS = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_LOOP_OF_STEPS = re.compile(rf'op_name="[^"]*\b{STEPS}\)*/while"')


class Instruction(NamedTuple):
    """One instruction of a compiled program.

    Attributes:
        name: its name.
        result: the type of its result.
        opcode: what it does.
        rest: operands and attributes, as text.
        root: whether it gives its computation's result.
    """

    name: str
    result: str
    opcode: str
    rest: str
    root: bool

    @property
    def called(self) -> list[str]:
        """The computations that it calls, a loop's body and condition among them."""
        lists = [name for names in _CALLED_LISTS.findall(self.rest) for name in re.findall(_NAME, names)]
        return [*_CALLED.findall(self.rest), *lists]

    def named(self, attribute: str) -> str:
        """Returns the computation in one attribute, such as "body"."""
        found = re.search(rf"\b{attribute}={_NAME}", self.rest)
        return found[1] if found else ""


class Counts(NamedTuple):
    """What a compiled program does, on each device.

    Attributes:
        kernels: instructions that run in one training step of all the device's replicas; None: there is no loop over
            the steps, because a period has only one.
        collectives_in_steps: collectives in the loop over the steps.
        collectives_in_period: other collectives in the loop over the periods: those of the exchange, and of evaluation
            if there are any.
        collectives_in_dispatch: collectives outside of all loops.
        host_transfers: infeeds, outfeeds, callbacks, and copies to or from the host's memory, wherever they are.
    """

    kernels: int | None
    collectives_in_steps: int
    collectives_in_period: int
    collectives_in_dispatch: int
    host_transfers: int


def count(text: str) -> Counts:
    """Returns the counts for the text of a compiled program of `Engine.run`."""
    program = Program(text)
    loops = program.loops_of_steps()
    in_steps = {name for loop, _ in loops for name in program.reached(loop.named("body"))}
    everything = [(name, one) for name, lines in program.computations.items() for one in lines]
    in_loops = {name for _, one in everything if one.opcode == "while" for name in program.reached(one.named("body"))}
    across = [name for name, one in everything if _is_collective(one)]
    return Counts(
        kernels=sum(turns * program.kernels(loop.named("body")) for loop, turns in loops) if loops else None,
        collectives_in_steps=sum(name in in_steps for name in across),
        collectives_in_period=sum(name in in_loops - in_steps for name in across),
        collectives_in_dispatch=sum(name not in in_loops for name in across),
        host_transfers=sum(_is_host_transfer(one) for _, one in everything),
    )


class Program:
    """A compiled program, by computations.

    Attributes:
        computations: {name: its instructions}.
    """

    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[Instruction]] = {}
        name = ""
        for line in text.splitlines():
            if begin := _COMPUTATION.match(line):
                name = begin[1]
                self.computations[name] = []
            elif name in self.computations and (found := _INSTRUCTION.match(line)):
                root, own, result, opcode, rest = found.groups()
                self.computations[name].append(Instruction(own, result, opcode, rest, root is not None))

    def reached(self, start: str) -> set[str]:
        """Returns the computations that one calls, directly or not, itself included."""
        seen: set[str] = set()
        left = [start]
        while left:
            name = left.pop()
            if name not in seen and name in self.computations:
                seen.add(name)
                left += [other for one in self.computations[name] for other in one.called]
        return seen

    def loops_of_steps(self) -> list[tuple[Instruction, int]]:
        """Returns each loop over training steps, and how often it runs in a period: once for each turn of "map"."""
        loops = [(name, one) for name, lines in self.computations.items() for one in lines if one.opcode == "while"]
        steps = [(name, one) for name, one in loops if _LOOP_OF_STEPS.search(one.rest)]
        found = []
        for name, one in steps:
            around = [other for _, other in loops if name in self.reached(other.named("body"))]
            turns = 1
            for other in around:
                turns *= self.turns(other) or 1  # unknown: the loop over the periods
            found.append((one, turns))
        return found

    def turns(self, loop: Instruction) -> int | None:
        """Returns how often a loop's body runs; None if the program does not say."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(known[1])
        lines = {one.name: one for one in self.computations.get(loop.named("condition"), [])}
        for one in lines.values():
            if one.root and one.opcode == "compare" and "direction=LT" in one.rest:
                for name in re.findall(_NAME, one.rest.partition(")")[0]):
                    if name in lines and lines[name].opcode == "constant":
                        return int(lines[name].rest.partition(")")[0])
        return None

    def kernels(self, name: str) -> int:
        """Returns the instructions that run in a computation, those of inner loops as often as the loops turn."""
        total = 0
        for one in self.computations.get(name, []):
            if one.opcode == "while":
                total += (self.turns(one) or 1) * self.kernels(one.named("body"))
            elif one.opcode == "conditional":
                total += max((self.kernels(branch) for branch in one.called), default=0)
            elif one.opcode in ("call", "async-start"):
                total += sum(self.kernels(other) for other in one.called)
            else:
                total += _launches(one)
        return total


def _launches(one: Instruction) -> bool:
    if one.opcode in _NOTHING or one.opcode.endswith(("-done", "-update")):
        return False
    if one.opcode == "custom-call" and _target(one) in _TARGETS_WITHOUT_WORK:
        return False
    number = re.match(r"\w+\[(1(,1)*)?\]", one.result) is not None  # a single one, computed beside the kernels
    return not number or one.opcode in _LAUNCHED or _is_collective(one)


def _is_collective(one: Instruction) -> bool:
    return one.opcode.removesuffix("-start") in _COLLECTIVES


def _is_host_transfer(one: Instruction) -> bool:
    if one.opcode in _HOST:
        return True
    if one.opcode == "custom-call":
        return re.search(r"callback|MoveToHost|MoveToDevice", _target(one)) is not None
    return one.opcode in ("copy", "copy-start") and "S(5)" in one.result  # 5: the memory of the host


def _target(one: Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', one.rest)
    return found[1] if found else ""
