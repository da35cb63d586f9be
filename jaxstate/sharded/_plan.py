"""Plan: what of torch's arrays lies where, of a model that lies on several processes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxstate.adapters import adapter_of
from jaxstate.apart import Bijection
from jaxstate.binding import Binding
from jaxstate.convert import fitting
from jaxstate.declared import Tied
from jaxstate.errors import BindingError
from jaxstate.io._nesting import Path
from jaxstate.sharded._leaves import gathered, own, shards

MAX_CHUNKS = 256  # that one shard may fall into on torch's side


class Plan(NamedTuple):
    """The same for all processes: what lies where, and who writes it.

    Attributes:
        arrays: torch's, by key, which all processes have to ask for in one order.
        mine: torch's, by key, of which this process has parts.
        chunks: by key the boxes and who writes each; a key without any is gathered, and has one owner.
        binding: of the model.
        objects: what is no array, by key.
        paths: where each key stands in nested dicts and lists; without any the keys are one dict's.
    """

    arrays: Mapping[str, Any]
    mine: Mapping[str, Any]
    chunks: Mapping[str, Mapping[Any, int]]
    binding: Binding
    objects: Mapping[str, Any] = {}
    paths: Mapping[str, Path] | None = None


def plan_of(model: Any, binding: Binding | None) -> Plan:
    """The plan of a model.

    Raises:
        BindingError: leaves that do not fit the binding, or hold what torch has no place for.
    """
    leaves = adapter_of(model).leaves(model)
    binding, collection = fitting(binding, model, leaves)
    leaves = {collection + path: leaf for path, leaf in leaves.items()}
    everywhere = {path: gathered(leaf) for path, leaf in leaves.items()}
    if refused := [line for rule in binding.rules for line in rule.refused_leaves(everywhere)]:
        raise BindingError("torch cannot hold these leaves:\n\t" + "\n\t".join(refused))
    here = {path: own(leaf) for path, leaf in leaves.items()}
    rules = [rule for rule in binding.rules if isinstance(rule, Bijection)]
    mine = {key: array for rule in rules for key, array in rule.lazy_state_dict(here).items()}
    chunks = {key: found for rule in rules for key, found in chunks_of(rule, leaves).items()}
    for key, to in (pair for rule in binding.rules if isinstance(rule, Tied) for pair in rule.pairs):
        if to in chunks:
            mine[key], chunks[key] = mine[to], chunks[to]
    return Plan(binding.lazy_state_dict(everywhere), mine, chunks, binding)


def chunks_of(rule: Bijection, leaves: Mapping[str, Any]) -> dict[str, dict[Any, int]]:
    """The boxes of torch's arrays that the shards of this rule's leaves are, and who has each."""
    found: dict[str, dict[Any, int]] = {key: {} for key in rule.keys}
    for path in rule.paths:
        for region, process in shards(leaves[path]).items():
            box = tuple(slice(*ends) for ends in region)
            places = rule.places(path, box) if leaves[path].size else []
            if len(places) > MAX_CHUNKS * len(rule.keys):
                return {}
            for key, there in places:
                found[key][tuple((span.start, span.stop) for span in there)] = process
    return {key: boxes for key, boxes in found.items() if boxes}
