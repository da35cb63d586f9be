"""Items: the flat trees that a checkpoint is made of, each leaf under its dotted path.

`params` is what an optimizer trains, `buffers` the rest of the model, `random` NNX's own random state;
`optimizer` is the tree in whatever holds it, and `rngs` what the caller names so.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from jaxstate import tree
from jaxstate.adapters import adapter_of
from jaxstate.binding import Binding
from jaxstate.errors import CheckpointError, near_names
from jaxstate.optim._nest.flax_states import closed, opened
from jaxstate.optim._torch_dict.groups_json import folded, groups_from_json, spelled_out

Leaves = Mapping[str, Any]

MODEL = ("params", "buffers", "random")


def model_items(model: Any, binding: Binding) -> dict[str, dict[str, Any]]:
    """The leaves of a model; of a tree of the parameters alone, these.

    Raises:
        CheckpointError: leaves that the binding has and the model lacks.
    """
    leaves = adapter_of(model).leaves(model)
    trained = set(binding.of_parameters().paths)
    params = {path: leaf for path, leaf in leaves.items() if path in trained}
    if set(leaves) == trained < set(binding.paths):
        return {"params": params}
    if lacking := [path for path in binding.paths if path not in leaves]:
        near = near_names(lacking, [path for path in leaves if path not in set(binding.paths)])
        hints = [f"did you mean {found} for {path}?" for path, found in near.items()]
        raise CheckpointError(
            f"the checkpoint's model has leaves that the template lacks: {', '.join(lacking)}"
            + "".join(f"\n\t{hint}" for hint in hints)
        )
    buffers = {path: leaf for path, leaf in leaves.items() if path not in trained}
    return {"params": params, "buffers": buffers, "random": random_leaves(model)}


def random_leaves(model: Any) -> dict[str, Any]:
    """NNX's random state by path: keys and how often each was used. Other models have none inside."""
    if not isinstance(model, nnx.Module):
        return {}
    return {
        ".".join(map(str, path)): leaf.get_raw_value()
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.RngState))
    }


def with_model_items(model: Any, items: Mapping[str, Leaves]) -> Any:
    """A model like this one with these leaves."""
    leaves = {**items.get("params", {}), **items.get("buffers", {})}
    new = adapter_of(model).with_leaves(model, leaves)
    return _with_random(new, items["random"]) if items.get("random") else new


def optimizer_leaves(opt: Any) -> dict[str, Any]:
    """The leaves of a tree of states, of an `nnx.Optimizer` or of a `TrainState`."""
    return {} if opt is None else tree.flat(spelled_out(opened(opt)))


def with_optimizer_leaves(opt: Any, leaves: Leaves, groups: list[Any] | None) -> Any:
    """A holder or tree like this one with these leaves, and with the param_groups of a record, if any."""
    before = opened(opt)
    new = folded(tree.unflat(spelled_out(before), leaves), before)
    return closed(opt, new if groups is None else groups_from_json(new, groups))


def _with_random(model: nnx.Module, leaves: Leaves) -> nnx.Module:
    graphdef, state = nnx.split(model)
    flat = [
        (path, leaf.replace(leaves[name]) if (name := ".".join(map(str, path))) in leaves else leaf)
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(flat))
