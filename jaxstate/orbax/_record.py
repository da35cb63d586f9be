"""Record: what a checkpoint says beside its arrays, as one JSON value that carries its own checksum.

The step, the Binding, param_groups, a scheduler's state, and of every leaf its shape, dtype, place on a mesh
and digests. With it the arrays are enough to write torch's files, and to notice what the disk has done.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxstate.binding import Binding
from jaxstate.errors import CheckpointError, JaxstateError
from jaxstate.orbax._leaves import Leaf
from jaxstate.orbax._values import value_from_json, value_to_json

VERSION = 1


@dataclass(frozen=True)
class Record:
    """All of a checkpoint that is no array.

    Args:
        step: how far training had come.
        binding: of the model.
        leaves: by item and path.
        optimizer: the skeleton of its state; None if there was no optimizer.
        param_groups: those of each State of jaxstate in it, as JSON.
        rngs: the skeleton of the tree of random keys.
        scheduler, extra: plain values, as they were given.
    """

    step: int | None
    binding: Binding
    leaves: Mapping[str, Mapping[str, Leaf]]
    optimizer: Any = None
    param_groups: list[Any] = field(default_factory=list)
    rngs: Any = None
    scheduler: Any = None
    extra: Any = None

    def to_json(self) -> dict[str, Any]:
        """The record as JSON.

        >>> record = Record(3, Binding(()), {}, scheduler={"best": float("inf")})
        >>> Record.from_json(record.to_json(), "here") == record
        True
        """
        value = {
            "step": self.step,
            "binding": self.binding.to_json(),
            "leaves": {
                item: {path: leaf.to_json() for path, leaf in row.items()}
                for item, row in self.leaves.items()
            },
            "optimizer": self.optimizer,
            "param_groups": self.param_groups,
            "rngs": self.rngs,
            "scheduler": value_to_json(self.scheduler, "scheduler"),
            "extra": value_to_json(self.extra, "extra"),
        }
        return {"version": VERSION, "crc32": _checksum(value), "record": value}

    @classmethod
    def from_json(cls, found: Any, where: Any) -> "Record":
        """The record of its JSON.

        Raises:
            CheckpointError: JSON of another version, or that is not what was written.
        """
        found = found if isinstance(found, Mapping) else {}
        if (version := found.get("version")) != VERSION:
            raise CheckpointError(
                f"the record of {where} is of version {version!r}, and {VERSION} is read here"
            )
        value: Any = found["record"] if "record" in found else None
        if _checksum(value) != found.get("crc32"):
            raise CheckpointError(
                f"the record of {where}, jaxstate/data.json, is not what was written: it is damaged"
            )
        try:
            return cls._of(value)
        except (KeyError, TypeError, ValueError, JaxstateError) as error:
            raise CheckpointError(f"the record of {where} is no record: {error!r}") from error

    @classmethod
    def _of(cls, value: Mapping[str, Any]) -> "Record":
        leaves = {
            item: {path: Leaf.from_json(leaf) for path, leaf in row.items()}
            for item, row in value["leaves"].items()
        }
        kept = {name: value[name] for name in ("optimizer", "param_groups", "rngs")}
        plain = {name: value_from_json(value[name]) for name in ("scheduler", "extra")}
        return cls(value["step"], Binding.from_json(value["binding"]), leaves, **kept, **plain)


def _checksum(value: Any) -> int:
    # Tuples are lists by the time the file is read, and the text is the same.
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())
