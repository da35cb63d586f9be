"""In torch's layout: a transformation that is given torch's arrays instead of the model's leaves.

Adafactor averages over the last two axes, Muon orthogonalizes a matrix, both normalise a parameter as a
whole. So what torch's axes are, and what is one parameter to torch, decides what they do: a convolution has
other rows, a fused projection is one matrix, a stack of layers is many. The Binding knows.
"""

from collections.abc import Mapping
from typing import Any

import jax
import optax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError, quoted
from jaxstate.optim._gradient import check_gradient, slopes_of
from jaxstate.optim._parameters import Parameters
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._state import check_is_state
from jaxstate.optim._torch_dict.state_dict import refused_sums
from jaxstate.rules.declared import JaxOnly

NO_PARAMETERS = "torch's optimizers read the parameters: update(grads, state, params)"


def in_torch_layout(
    tx: optax.GradientTransformation, binding: Binding | None
) -> optax.GradientTransformation:
    """The transformation with torch's arrays, `{torch name: array}`, in place of the leaves.

    Args:
        tx: takes and keeps torch's arrays; its state has a State's `algorithm`.
        binding: makes them of the leaves; None where the leaves are torch's arrays already.

    Raises:
        OptimizerError: leaves that the Binding does not know or torch has no parameter for, a part of a
            torch parameter.
    """
    if binding is None:
        return tx

    def init(params: Any) -> Any:
        leaves = _leaves(params)
        return tx.init(_arrays(_parameters(binding, leaves), leaves))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise OptimizerError(NO_PARAMETERS)
        check_is_state(state)
        leaves, treedef = _leaves(params), jax.tree.structure(params)
        parameters = _parameters(binding, leaves)
        slopes = dict(zip(leaves, slopes_of(updates, treedef), strict=True))
        for path, g in slopes.items():
            None if g is None else check_gradient(state.algorithm, path, g, leaves[path])
        moved: Any
        moved, state = tx.update(_slopes(parameters, slopes), state, parameters.to_torch(leaves))
        back = parameters.to_jax(moved, leaves)
        return treedef.unflatten([back[path] for path in leaves]), state

    given: Any = init, update
    return optax.GradientTransformation(*given)


def _leaves(tree: Any) -> dict[str, Any]:
    return dict(zip(leaf_paths(tree), jax.tree.leaves(tree), strict=True))


def _parameters(binding: Binding, leaves: Mapping[str, Any]) -> Parameters:
    parameters = Parameters.of(binding, tuple(leaves))
    problems = [*refused_sums(parameters), *_untold(parameters), *_padded(parameters)]
    if problems:
        raise OptimizerError("these leaves are no parameters of torch's:\n\t" + "\n\t".join(problems))
    return parameters


def _untold(parameters: Parameters) -> list[str]:
    families = [family for family in parameters.families if isinstance(family, JaxOnly)]
    return [
        f"leaf {path} has no parameter in torch's module; leave it to another transformation with "
        "optax.partition, or freeze it"
        for family in families
        for path in parameters.own_paths(family)
    ]


def _padded(parameters: Parameters) -> list[str]:
    return [
        f"leaves {quoted(family.paths)} are of another size than torch's, as {family!r} says, and what the "
        "optimizer does to one row depends on all; leave them to another transformation with optax.partition"
        for family in parameters.padded
    ]


def _arrays(parameters: Parameters, leaves: dict[str, Any]) -> dict[str, Any]:
    """torch's arrays, abstract if the leaves are."""
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves.values())
    return jax.eval_shape(parameters.to_torch, leaves) if abstract else parameters.to_torch(leaves)


def _slopes(parameters: Parameters, slopes: Mapping[str, Any]) -> dict[str, Any]:
    """The gradients of torch's arrays: None where the leaves have none."""
    given = {path: g for path, g in slopes.items() if g is not None}
    for name, paths in parameters.paths_of.items():
        lacking = [path for path in paths if path not in given]
        if 0 < len(lacking) < len(paths):
            raise OptimizerError(
                f'"{name}" is one parameter in torch, and only a part of it, {quoted(lacking)}, has a '
                "gradient of None"
            )
    return dict.fromkeys(parameters.names) | parameters.to_torch(given)
