"""`jaxstate convert IN OUT`: any format to any format, one tensor in memory at a time."""

import argparse
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from jaxstate import io, orbax
from jaxstate.commands import _screen
from jaxstate.commands._entries import entries, is_array
from jaxstate.commands._factory import HELP, template
from jaxstate.commands._one_by_one import announced, recast
from jaxstate.commands._source import PART, by_role, opened, part_of
from jaxstate.containers import load_checkpoint
from jaxstate.errors import FileError, quoted
from jaxstate.io._shards import size_in_bytes

FORMATS = ("pt", "legacy", "safetensors", "dcp")
DTYPES = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def add_to(commands: Any) -> None:
    """Declare the command and its arguments."""
    command = commands.add_parser(
        "convert",
        help="write a checkpoint in another format, or as a JAX model in Orbax",
        description="What stands at OUT is replaced when all is written, and stays whole if not.",
        epilog="example: jaxstate convert train.ckpt model.safetensors --dtype bfloat16",
    )
    command.add_argument("source", metavar="IN", help="a file or a folder, of any format")
    command.add_argument("target", metavar="OUT", help="a file, whose suffix chooses the format, or a folder")
    command.add_argument("--format", choices=FORMATS, help="in place of what the suffix says")
    command.add_argument("--part", help=f"{PART}; the model where OUT can hold nothing else")
    command.add_argument("--dtype", choices=DTYPES, help="round the floats of a model to this")
    command.add_argument("--prefix", default="", help="put this before every key")
    command.add_argument("--strip-prefix", default="", metavar="PREFIX", help="take this from every key")
    command.add_argument("--max-shard-size", metavar="SIZE", help="of a safetensors file in a folder: 5GB")
    command.add_argument("--memory", metavar="SIZE", help="refuse to hold an array above this: 500MB")
    command.add_argument("--model", metavar="MODULE:FACTORY", help=f"write a JAX model with Orbax: {HELP}")
    command.set_defaults(command=_run)


def _run(parsed: argparse.Namespace) -> int:
    content = _content(parsed)
    _check_flat(parsed, content)
    content = _renamed(content, parsed.strip_prefix, parsed.prefix)
    if parsed.dtype:
        content = recast(content, np.dtype(getattr(ml_dtypes, parsed.dtype, parsed.dtype)))
    sizes = {path: value.nbytes for path, value in entries(content).items() if is_array(value)}
    _check_memory(sizes, parsed.memory)
    start = time.monotonic()
    with _screen.progress() as bar:
        task = bar.add_task("writing", total=sum(sizes.values()))
        content = announced(content, lambda count: bar.advance(task, count))
        _write_model(parsed, content) if parsed.model else _write(parsed, content)
    _report(parsed.target, len(sizes), sum(sizes.values()), time.monotonic() - start)
    return 0


def _content(parsed: argparse.Namespace) -> Any:
    """What is to be written: the part asked for; the model where only that can be written; else all."""
    whole = opened(parsed.source, parsed.part)
    if parsed.part is not None:
        return whole.content
    if os.path.isdir(parsed.source) and whole.checkpoint and not _holds_one_model(parsed):
        _say_left(whole.checkpoint.extra)
        return by_role(whole.checkpoint)
    if not _holds_one_model(parsed) or _is_flat(whole.content):
        return whole.content
    checkpoint = load_checkpoint(parsed.source) if whole.checkpoint is None else whole.checkpoint
    _say_left([place for kind, place, _ in checkpoint.rows if kind not in ("model", "wrappers")])
    return part_of(checkpoint, "model")


def _say_left(places: Iterable[str]) -> None:
    if left := list(places):
        print(f"not taken: {quoted(left)}; see --part", file=sys.stderr)


def _holds_one_model(parsed: argparse.Namespace) -> bool:
    """Whether what is asked for is a flat dict of arrays and nothing else."""
    safetensors = parsed.format == "safetensors" or parsed.target.endswith(".safetensors")
    options = (parsed.model, parsed.max_shard_size, parsed.dtype, parsed.prefix, parsed.strip_prefix)
    return safetensors or any(options)


def _check_flat(parsed: argparse.Namespace, content: Any) -> None:
    """An optimizer's step counts must not be rounded, nor its own keys renamed."""
    asked = {"--dtype": parsed.dtype, "--prefix": parsed.prefix, "--strip-prefix": parsed.strip_prefix}
    given = [option for option, value in asked.items() if value]
    if given and not _is_flat(content):
        raise FileError(f"{' and '.join(given)} is for the weights of a model, and {parsed.part} is none")


def _is_flat(content: Any) -> bool:
    return isinstance(content, Mapping) and all(is_array(value) for value in content.values())


def _renamed(content: Any, strip: str, prefix: str) -> Any:
    if not (strip or prefix):
        return content
    if odd := [key for key in content if not key.startswith(strip)]:
        raise FileError(f'{len(odd)} keys do not begin with "{strip}", such as "{odd[0]}"')
    new = OrderedDict((prefix + key.removeprefix(strip), value) for key, value in content.items())
    if versions := getattr(content, "_metadata", None):
        new._metadata = _renamed_modules(versions, strip, prefix)  # pyright: ignore[reportAttributeAccessIssue]
    return new


def _renamed_modules(versions: Mapping[str, Any], strip: str, prefix: str) -> "OrderedDict[str, Any]":
    """torch's `_metadata` for the same modules; those above a prefix that is taken away have no place."""
    kept = {name: value for name, value in versions.items() if f"{name}.".startswith(strip) or not strip}
    moved = {(prefix + f"{name}.".removeprefix(strip)).strip("."): value for name, value in kept.items()}
    return OrderedDict(moved)


def _check_memory(sizes: Mapping[str, int], budget: str | None) -> None:
    limit = size_in_bytes(budget) if budget is not None else max(sizes.values(), default=0)
    if over := [f"{path} of {_screen.size(size)}" for path, size in sizes.items() if size > limit]:
        raise FileError(f"one array at a time is in memory, and {over[0]} is above --memory {budget}")


def _write(parsed: argparse.Namespace, content: Any) -> None:
    io.save(content, parsed.target, format=parsed.format, max_shard_size=parsed.max_shard_size)


def _write_model(parsed: argparse.Namespace, state_dict: Any) -> None:
    """The state_dict in a JAX model, as an Orbax checkpoint, without the model in memory."""
    made = template(parsed.model)
    binding = made.bind(like=state_dict)
    memory = parsed.memory or "32MiB"
    orbax.from_torch(parsed.target, state_dict, made.model, binding=binding, memory=memory)


def _report(target: str, count: int, total: int, seconds: float) -> None:
    rate = _screen.size(total / max(seconds, 1e-9))
    print(f"{target}: {count} arrays, {_screen.size(total)} in {seconds:.1f} s ({rate}/s)")
