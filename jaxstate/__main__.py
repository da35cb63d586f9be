"""The command line: `jaxstate demo`."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from jaxstate import demo
from jaxstate.errors import JaxstateError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0 if it succeeded, 1 if not."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.command(parsed)
    except (JaxstateError, OSError) as error:
        print(f"jaxstate: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "jaxstate", description="Move weights and training between PyTorch and JAX."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "demo",
        help="resume a torch checkpoint in JAX and write it back for torch",
        epilog="example: jaxstate demo --out /tmp/jaxstate-demo",
    )
    command.add_argument("--out", type=Path, help="an empty folder to keep the written files in")
    command.set_defaults(command=_demo)
    return parser


def _demo(parsed: argparse.Namespace) -> int:
    if parsed.out is not None:
        parsed.out.mkdir(parents=True, exist_ok=True)
        demo.run(parsed.out, Console())
        return 0
    with tempfile.TemporaryDirectory(prefix="jaxstate-") as folder:
        demo.run(Path(folder), Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
