"""What jaxstate says of a mutation, and the table of it."""

import copy
import re
from collections.abc import Iterator
from typing import Any

from flax import nnx
from mutations import Mutation, patched
from rights import Right

import jaxstate as js

NAMED, REFUSED, PLACED, SEEN, SILENT = "named", "refused", "placed", "seen", "silent"


def verdict(right: Right, mutation: Mutation) -> tuple[str, str]:
    """One word, and the report.

    Returns:
        "refused": an error before anything runs; "named": the first wrong layer and the cause; "placed": the
        layer, and no cause or another one; "seen": the outputs differ, and another layer is blamed;
        "silent": nothing.
    """
    try:
        model = mistaken(right, mutation)
    except js.JaxstateError as error:
        return (REFUSED if re.search(mutation.cause, str(error)) else SEEN), str(error)
    try:
        report, place, words = report_of(right, mutation, model)
    except js.JaxstateError as error:
        return (REFUSED if re.search(mutation.cause, str(error)) else SEEN), str(error)
    if not report:
        return SILENT, ""
    places = mutation.places or right.first_module(mutation.entries)
    said = place + "".join(re.findall(r'"[^"]*"', words))  # or the weights by their names
    if not any(re.search(rf'"{re.escape(name)}[".]|(?m:^{re.escape(name)} )', said) for name in places):
        return SEEN, f"{places} {report}"
    return (NAMED if re.search(mutation.cause, words) else PLACED), report


def mistaken(right: Right, mutation: Mutation) -> nnx.Module:
    if mutation.binding is not None:
        return js.load_state_dict(right.template, right.entries, mutation.binding)
    file = right.file(mutation.entries) if mutation.file is None else mutation.file
    model = js.load_state_dict(right.template, file, right.binding)
    if mutation.model is not None:
        mutation.model(model)
    return model


def report_of(right: Right, mutation: Mutation, model: Any) -> tuple[str, str, str]:
    """The report, its line on the place, and those on the cause; all "" if the port is believed right."""
    theirs = copy.deepcopy(right.theirs)
    if mutation.torch is not None:
        mutation.torch(theirs)
    arguments = (theirs, model, *right.twin.inputs.values())
    binding = mutation.binding or right.binding
    with patched(mutation):
        try:
            js.testing.assert_same_outputs(
                *arguments, binding=binding, call=right.twin.call, torch_call=right.calls
            )
        except js.ParityError as error:
            if "differs" not in str(error):
                raise
            return str(error), *_lines(str(error))
        table = js.testing.warnings(*arguments, binding=binding, call=right.twin.call)
    rows = [row for row in table if row.setting != "momentum"]  # a right twin leaves it as Flax has it
    text = "\n".join(f"{row.name} {row.setting} {row.theirs} {row.ours}" for row in rows)
    return text, text, text


def _lines(report: str) -> Iterator[str]:
    lines = [line.strip() for line in report.splitlines()]
    yield "\n".join(line for line in lines if "first layer" in line or line.endswith("differs"))
    yield "\n".join(line for line in lines if re.match("cause:|mend:|or:", line))
