"""`jaxstate convert IN OUT`: any format to any format, one tensor in memory at a time."""

import argparse
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxstate import io, orbax
from jaxstate.commands import _screen
from jaxstate.commands._entries import entries, is_array
from jaxstate.commands._factory import HELP, template
from jaxstate.commands._recast import recast
from jaxstate.commands._source import PART, opened, part_of
from jaxstate.containers import load_checkpoint
from jaxstate.convert import load_state_dict
from jaxstate.errors import FileError

FORMATS = ("pt", "legacy", "safetensors", "dcp", "orbax")
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def add_to(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "convert",
        help="write a checkpoint in another format, or as a JAX model in Orbax",
        description="What stands at OUT is replaced when all is written, and stays whole if not.",
        epilog="example: jaxstate convert train.ckpt model.safetensors --dtype bfloat16",
    )
    command.add_argument("source", metavar="IN", help="a file or a folder, of any format")
    command.add_argument("target", metavar="OUT", help="a file or a folder; its suffix chooses the format")
    command.add_argument("--format", choices=FORMATS, help="in place of what the suffix says")
    command.add_argument("--part", help=PART)
    command.add_argument("--dtype", choices=DTYPES, help="round all floats of the parts written to this")
    command.add_argument("--prefix", default="", help="put this before every key")
    command.add_argument("--strip-prefix", default="", metavar="PREFIX", help="take this from every key")
    command.add_argument("--max-shard-size", metavar="SIZE", help="of one safetensors file, such as 5GB")
    command.add_argument(
        "--memory", metavar="SIZE", help="refuse to hold more than this at once, such as 500MB"
    )
    command.add_argument("--model", metavar="MODULE:FACTORY", help=f"write a JAX model with Orbax: {HELP}")
    command.set_defaults(command=_run)


def _run(parsed: argparse.Namespace) -> int:
    content = _content(parsed)
    content = _renamed(content, parsed.strip_prefix, parsed.prefix)
    content = (
        recast(content, np.dtype(getattr(ml_dtypes, parsed.dtype, parsed.dtype))) if parsed.dtype else content
    )
    sizes = {path: value.nbytes for path, value in entries(content).items() if is_array(value)}
    _check_memory(sizes, parsed.memory)
    start = time.monotonic()
    _write_model(parsed, content) if parsed.model else _write(parsed, content, sum(sizes.values()))
    total, seconds = sum(sizes.values()), time.monotonic() - start
    rate = _screen.size(total / max(seconds, 1e-9))
    print(f"{parsed.target}: {len(sizes)} arrays, {_screen.size(total)} in {seconds:.1f} s ({rate}/s)")
    return 0


def _content(parsed: argparse.Namespace) -> Any:
    """What is to be written: the part asked for; a model where only a model can be written; else all."""
    if parsed.part is None and _is_flat(parsed):
        checkpoint = load_checkpoint(parsed.source)
        left = [place for kind, place, _ in checkpoint.rows if kind not in ("model", "wrappers")]
        if left:
            print(
                f"taking the model; not what else is there: {', '.join(left)} (see --part)", file=sys.stderr
            )
        return part_of(checkpoint, "model")
    return opened(parsed.source, parsed.part).content


def _is_flat(parsed: argparse.Namespace) -> bool:
    """Whether the target holds a flat dict of arrays and nothing else."""
    safetensors = parsed.format == "safetensors" or (
        parsed.format is None and parsed.target.endswith((".safetensors", "/"))
    )
    return bool(safetensors or parsed.model or parsed.max_shard_size or parsed.prefix or parsed.strip_prefix)


def _renamed(content: Any, strip: str, prefix: str) -> Any:
    if not (strip or prefix):
        return content
    if not isinstance(content, Mapping):
        raise FileError(f"a prefix belongs to the keys of a dict, and this is a {type(content).__name__}")
    if odd := [key for key in content if not str(key).startswith(strip)]:
        raise FileError(f'{len(odd)} keys do not begin with "{strip}", such as "{odd[0]}"')
    return {prefix + key.removeprefix(strip): value for key, value in content.items()}


def _check_memory(sizes: Mapping[str, int], budget: str | None) -> None:
    if budget is None:
        return
    limit = bytes_of(budget)
    if over := [f"{path} of {_screen.size(size)}" for path, size in sizes.items() if size > limit]:
        raise FileError(f"one array at a time is in memory, and {over[0]} is above --memory {budget}")


def bytes_of(text: str) -> int:
    """The number of bytes that a text such as `5GB` says.

    Raises:
        FileError: another text.

    >>> bytes_of("5GB"), bytes_of("1.5 MiB"), bytes_of("300")
    (5000000000, 1572864, 300)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in UNITS:
        raise FileError(f"a size is written as 300MB, 5GB or 2GiB, not {text!r}")
    return round(float(found[1]) * UNITS[found[2].upper()])


def _write(parsed: argparse.Namespace, content: Any, total: int) -> None:
    with _screen.progress() as bar:
        task = bar.add_task("writing", total=total)
        io.save(
            content,
            parsed.target,
            format=parsed.format,
            max_shard_size=parsed.max_shard_size and bytes_of(parsed.max_shard_size),
            written=lambda count: bar.update(task, completed=count),
        )


def _write_model(parsed: argparse.Namespace, state_dict: Any) -> None:
    """The state_dict in a JAX model, as an Orbax checkpoint."""
    made = template(parsed.model)
    binding = made.bind(like=state_dict)
    orbax.save(parsed.target, load_state_dict(made.model, state_dict, binding), binding=binding)
