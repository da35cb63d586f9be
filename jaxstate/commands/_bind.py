"""`jaxstate bind --model module:factory PATH`: a model's leaves by a file's keys, and what does not fit."""

import argparse
import json
from typing import Any

from jaxstate.binding import COLUMNS, Binding
from jaxstate.commands import _screen
from jaxstate.commands._factory import HELP, template
from jaxstate.commands._source import opened
from jaxstate.comparison import Comparison


def add_to(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "bind",
        help="pair a JAX model's leaves with a file's keys: the Binding, and what is missing or unexpected",
        description="Exit status 0 if every key fits, 1 if not, 2 if the model or the file cannot be read.",
        epilog="example: jaxstate bind --model mynet:make net.pt",
    )
    command.add_argument("path", metavar="PATH", help="a file or a folder")
    command.add_argument("--model", required=True, metavar="MODULE:FACTORY", help=HELP)
    command.add_argument("--part", default="model", help="the part of the checkpoint that the model is")
    command.add_argument("--json", action="store_true", help="print the Binding and the comparison as JSON")
    command.set_defaults(command=_run)


def _run(parsed: argparse.Namespace) -> int:
    binding = template(parsed.model).bind()
    comparison = binding.compare(opened(parsed.path, parsed.part).content)
    _print_json(binding, comparison) if parsed.json else _print(binding, comparison)
    return 0 if comparison else 1


def _print(binding: Binding, comparison: Comparison) -> None:
    _screen.print_table(COLUMNS, binding.rows)
    print(comparison)


def _print_json(binding: Binding, comparison: Comparison) -> None:
    found = {
        "fits": bool(comparison),
        "missing_keys": comparison.missing_keys,
        "unexpected_keys": comparison.unexpected_keys,
        "mismatched": [mismatch._asdict() for mismatch in comparison.mismatched],
        "problems": comparison.problems,
        **json.loads(binding.to_json()),
    }
    print(json.dumps(found, indent=1))
