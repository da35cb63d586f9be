"""`jaxstate demo`: a torch checkpoint is trained on in JAX and written back for torch."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxstate import demo


def add_to(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "demo",
        help="resume a torch checkpoint in JAX and write it back for torch",
        epilog="example: jaxstate demo --out /tmp/jaxstate-demo",
    )
    command.add_argument("--out", type=Path, help="an empty folder to keep the written files in")
    command.set_defaults(command=_run)


def _run(parsed: argparse.Namespace) -> int:
    if parsed.out is not None:
        parsed.out.mkdir(parents=True, exist_ok=True)
        demo.run(parsed.out, Console())
        return 0
    with tempfile.TemporaryDirectory(prefix="jaxstate-") as folder:
        demo.run(Path(folder), Console())
    return 0
