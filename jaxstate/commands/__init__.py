"""The command line: `inspect`, `convert`, `diff`, `bind`, one file each, and `demo`."""

import argparse
import sys
from collections.abc import Sequence

from jaxstate.commands import _bind, _convert, _demo, _diff, _inspect
from jaxstate.errors import JaxstateError

COMMANDS = (_inspect, _convert, _diff, _bind, _demo)
STATUS = (
    "exit status: 0 done, and nothing differs; 1 something differs or does not fit; 2 it could not be done"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and give its exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.command(parsed)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except (JaxstateError, OSError) as error:
        print(f"jaxstate: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "jaxstate", description="Move weights and training between PyTorch and JAX.", epilog=STATUS
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in COMMANDS:
        module.add_to(commands)
    return parser
