"""What `help()` shows of the public classes."""

import dataclasses
import inspect
import pydoc
import re

import pytest

import jaxpt
from jaxpt import diagnostics
from jaxpt.core import types
from jaxpt.devices import execution as axis
from jaxpt.devices import placement
from jaxpt.engine import replica as stacked
from jaxpt.rules import step_size
from jaxpt.studies import moves

NAMESPACES = (jaxpt, jaxpt.equinox, diagnostics, placement, moves, step_size, types, axis, stacked)


def fields(thing):
    """Names of a dataclass's or named tuple's fields."""
    names = getattr(thing, "_fields", None) or [field.name for field in dataclasses.fields(thing)]
    return [name for name in names if not name.startswith("_")]


CLASSES = {
    thing.__qualname__: thing
    for space in NAMESPACES
    for name, thing in vars(space).items()
    if inspect.isclass(thing) and thing.__module__.startswith("jaxpt") and not name.startswith("_")
    if dataclasses.is_dataclass(thing) or hasattr(thing, "_fields")
}


def test_the_classes_that_users_meet_are_looked_at():
    wanted = {
        "Status",
        "Best",
        "Problem",
        "Lineage",
        "Result",
        "Info",
        "Move",
        "Observation",
        "Diffusion",
        "Comparison",
        "Arm",
        "CompiledFor",
        "Tuned",
        "Timing",
        "Trace",
        "RunState",
        "Data",
    }
    assert wanted | {"Batches", "Ensemble", "Engine", "Ladder", "Tempering", "Placement", "Replicas"} <= set(CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_help_has_words_for_every_field(name):
    shown = pydoc.render_doc(CLASSES[name], renderer=pydoc.plaintext)
    section = re.split(r"\n \|  (?:Method resolution order|Methods defined here)", shown)[0]
    missing = [field for field in fields(CLASSES[name]) if not re.search(rf"^ \|\s+{field}: \w?\S", section, re.M)]
    assert not missing, f"help({name}) says nothing of {', '.join(missing)}"
