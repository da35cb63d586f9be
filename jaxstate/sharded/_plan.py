"""Plan: what lies where of a model on several processes, and who writes it; the same in all of them."""

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxstate.adapters import adapter_of
from jaxstate.binding import Binding
from jaxstate.convert import fitting
from jaxstate.errors import BindingError
from jaxstate.io._nesting import Path
from jaxstate.rules.apart import Bijection
from jaxstate.rules.declared import Tied
from jaxstate.sharded._leaves import gathered, own, shards

MAX_CHUNKS = 256  # that one shard may fall into on torch's side


class Plan(NamedTuple):
    """What each process is to write.

    Attributes:
        binding: of the model.
        everywhere: the leaves by path, each gathered when it is asked for.
        arrays: torch's, by key, which all processes have to ask for in one order.
        mine: torch's, by key, of which this process has parts.
        chunks: by key the boxes and the processes that have each; a key without any is gathered.
        objects: what is no array, by key.
        paths: where each key stands in nested dicts and lists; without any the keys are one dict's.
    """

    binding: Binding
    everywhere: Mapping[str, Any]
    arrays: Mapping[str, Any]
    mine: Mapping[str, Any]
    chunks: Mapping[str, Mapping[Any, tuple[int, ...]]]
    objects: Mapping[str, Any] = {}
    paths: Mapping[str, Path] | None = None

    @property
    def fingerprint(self) -> str:
        """A checksum that is the same in all processes if they are about to write the same."""
        arrays = {key: (tuple(x.shape), x.dtype.name) for key, x in self.arrays.items()}
        rows = {key: sorted(boxes.items()) for key, boxes in self.chunks.items()}
        every = repr((arrays, rows, dict(self.objects)))
        return f"{len(arrays)} arrays, {zlib.crc32(every.encode()):08x}"

    @property
    def number(self) -> int:
        """Of this process."""
        return jax.process_index()


def plan_of(model: Any, binding: Binding | None) -> Plan:
    """The plan for a model; nothing is gathered for it.

    Raises:
        BindingError: leaves that do not fit the binding.
    """
    leaves = adapter_of(model).leaves(model)
    binding, collection = fitting(binding, model, leaves)
    leaves = {collection + path: leaf for path, leaf in leaves.items()}
    everywhere = {path: gathered(leaf) for path, leaf in leaves.items()}
    here = {path: own(leaf) for path, leaf in leaves.items()}
    rules = [rule for rule in binding.rules if isinstance(rule, Bijection)]
    mine = {key: array for rule in rules for key, array in rule.lazy_state_dict(here).items()}
    chunks = {key: found for rule in rules for key, found in chunks_of(rule, leaves).items()}
    for key, to in (pair for rule in binding.rules if isinstance(rule, Tied) for pair in rule.pairs):
        if to in chunks:
            mine[key], chunks[key] = mine[to], chunks[to]
    return Plan(binding, everywhere, binding.lazy_state_dict(everywhere), mine, chunks)


def check_values(plan: Plan) -> None:
    """Raise BindingError for leaves that torch cannot hold; what must be looked at for that is gathered."""
    refused = [line for rule in plan.binding.rules for line in rule.refused_leaves(plan.everywhere)]
    if refused:
        raise BindingError("torch cannot hold these leaves:\n\t" + "\n\t".join(refused))


def chunks_of(rule: Bijection, leaves: Mapping[str, Any]) -> dict[str, dict[Any, tuple[int, ...]]]:
    """The boxes of torch's arrays that the shards of this rule's leaves are, and who has each."""
    found: dict[str, dict[Any, tuple[int, ...]]] = {key: {} for key in rule.keys}
    for path in rule.paths:
        for region, processes in shards(leaves[path]).items():
            box = tuple(slice(*ends) for ends in region)
            places = rule.places(path, box) if leaves[path].size else []
            if len(places) > MAX_CHUNKS * len(rule.keys):
                return {}
            for key, there in places:
                found[key][tuple((span.start, span.stop) for span in there)] = processes
    return {key: boxes for key, boxes in found.items() if boxes}
