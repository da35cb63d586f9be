"""What the report says of a mistake: where it is, and what it is. Every mistake is found out; the misses in
naming it are listed."""

import functools

import pytest
from mistakes import MISTAKES
from twins import make

import jaxstate as js
from jaxstate.testing._port import Port

made = functools.cache(make)

# Where a model's layers are the user's own, nothing but the outputs tells what they hold. What is then not
# named, and why.
UNREAD_MISSES = {}


def report_of(mistake):
    """The report, or "" if the port is believed to be right."""
    twin = made(mistake.twin)
    model, binding = mistake.make(twin)
    try:
        js.testing.assert_same_outputs(
            twin.torch, model, *twin.twin.inputs, binding=binding, input_layout=twin.twin.layout
        )
    except js.ParityError as error:
        return str(error)
    return ""


def verdict(mistake, report):
    """ "" if all is said; else what is missing."""
    if not report:
        return "not found out"
    lines = report.splitlines()
    place = next((line for line in lines if "first layer" in line or "reads differs" in line), "")
    cause = next((line for line in lines if line.strip().startswith("cause:")), "")
    mend = any(line.strip().startswith("mend:") for line in lines)
    if mistake.place not in place.partition("in JAX")[0]:
        return f"place: {place or lines[0]}"
    return "" if mistake.cause in cause and mend else f"cause: {cause}"


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: f"{m.twin}: {m.name}")
def test_the_report_names_place_and_cause(mistake):
    assert verdict(mistake, report_of(mistake)) == ""


def test_of_weights_that_cannot_be_read_most_are_named(monkeypatch):
    """The same where no layer is known: the Binding is the user's, and outputs are all there is."""
    weights = [m for m in MISTAKES if m.is_weight]
    monkeypatch.setattr(Port, "own", property(lambda port: None))
    found = {f"{m.twin}: {m.name}": verdict(m, report_of(m)) for m in weights}
    assert "not found out" not in found.values()
    assert {name: words for name, words in found.items() if words} == UNREAD_MISSES
