"""Reading compiled programs: computations, who calls whom, and what lies inside loops."""

import re

COLLECTIVE = re.compile(
    r"\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast)\b"
)


def computations(text):
    """{name: its lines} of a compiled program's text."""
    found, name = {}, None
    for line in text.splitlines():
        if begin := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line):
            name = begin[1]
            found[name] = []
        elif line.startswith("}"):
            name = None
        elif name is not None:
            found[name].append(line)
    return found


def reachable(found, start):
    """Names of the computations that one calls, itself included."""
    seen, left = set(), [start]
    while left:
        name = left.pop()
        if name not in seen and name in found:
            seen.add(name)
            left += [other for line in found[name] for other in re.findall(r"%([\w.-]+)", line) if other in found]
    return seen


def loops(text):
    """For each loop: (how many loops deep it lies, collectives anywhere in it)."""
    found = computations(text)
    bodies = {body for lines in found.values() for line in lines for body in re.findall(r"body=%?([\w.-]+)", line)}
    inside = {body: reachable(found, body) for body in bodies}
    return [
        (
            sum(body in others for other, others in inside.items() if other != body),
            [kind for name in inside[body] for line in found[name] for kind in COLLECTIVE.findall(line)],
        )
        for body in bodies
    ]
