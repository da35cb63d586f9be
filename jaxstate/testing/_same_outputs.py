"""assert_same_outputs: both models compute the same, or the report says where they part."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxstate.binding import Binding
from jaxstate.errors import ParityError
from jaxstate.testing._align import Match
from jaxstate.testing._compare import table_of
from jaxstate.testing._distance import distance
from jaxstate.testing._first_difference import first_difference
from jaxstate.testing._layers import Run
from jaxstate.testing._port import Layouts, Port
from jaxstate.testing._report import distance_line, report
from jaxstate.testing._torch_side import outputs_of


def assert_same_outputs(
    torch_module: Any,
    model: Any,
    *inputs: Any,
    binding: Binding | None = None,
    kwargs: Mapping[str, Any] | None = None,
    torch_kwargs: Mapping[str, Any] | None = None,
    call: Callable[..., Any] | None = None,
    torch_call: Callable[..., Any] | None = None,
    input_layout: Layouts = None,
    output_layout: Layouts = None,
    rtol: float = 1e-5,
) -> None:
    """Both models return the same, up to `rtol` of the largest magnitude that torch returns.

    Neither is changed: buffers that a run updates are put back, hooks are removed, modes are left as they
    are. A torch module in training mode whose dropout would draw is refused.

    Args:
        torch_module: with the weights that the JAX model is to have.
        model: an NNX module; a Linen module with its variables, `module.bind(variables)`; an Equinox module,
            or `(model, state)`; a function of Haiku with its variables, `(transformed, params)` or
            `(transformed, (params, state))`; any other model that can be called, whose layers stay unknown.
        *inputs: arrays or tensors in torch's layout.
        binding: of the model; its own reading by default. It is needed for the report alone.
        kwargs, torch_kwargs: keyword arguments of the two calls, each as its side takes them.
        call, torch_call: how the two are called, `call(model, *inputs)`: also to choose among outputs, and
            to map a model that takes one example, `call=lambda model, x: jax.vmap(model)(x)`.
        input_layout: a Layout, JAX axes left, for every input of its rank, "n h w c -> n c h w"; or one
            for each input, None where both sides take the same.
        output_layout: the same for outputs.
        rtol: the tolerance.

    Raises:
        ParityError: the outputs differ; the message names the first layer whose output differs, shows both
            arrays, and names the cause, and what mends it, if one could be reproduced.

    >>> import numpy as np, jaxstate as js, jax.numpy as jnp
    >>> torch = __import__("sys").modules.get("torch")
    >>> if torch:
    ...     from flax import nnx
    ...     net, model = torch.nn.Linear(3, 5), nnx.Linear(3, 5, rngs=nnx.Rngs(0))
    ...     model = js.load_state_dict(model, net.state_dict())
    ...     assert_same_outputs(net, model, np.ones((2, 3), "float32"))
    """
    __tracebackhide__ = True
    port = Port(
        torch_module,
        model,
        inputs,
        binding,
        kwargs or {},
        torch_kwargs or {},
        call,
        torch_call,
        input_layout,
        output_layout,
    )
    check_outputs(port, rtol)


def check_outputs(port: Port, rtol: float) -> None:
    """Raise ParityError if the outputs of a port differ."""
    __tracebackhide__ = True
    theirs = outputs_of(port.theirs, port.run_torch)
    ours = port.in_torch_layout(_jax_outputs(port, rtol))
    if list(theirs) != list(ours):
        raise ParityError(_other_outputs(theirs, ours))
    names = [name for name in theirs if not is_close(theirs[name], ours[name], rtol)]
    if names:
        first = theirs[names[0]], ours[names[0]]
        if _agrees_unrounded(port, theirs, rtol):
            raise ParityError(f"{_head(names[0], *first, rtol)}\n  {_ROUNDED}")
        run = Run(port)
        message = report(_head(names[0], *first, rtol), first_difference(run, matched(*first), rtol))
        raise ParityError(message, table_of(run))


def _jax_outputs(port: Port, rtol: float) -> dict[str, np.ndarray]:
    """What the JAX model returns; if it does not run, the layers until there may say why."""
    __tracebackhide__ = True
    try:
        return port.side.outputs_of(port.ours, port.run_jax)
    except Exception as error:
        head = f"the JAX model does not run with these inputs: {type(error).__name__}: {error}"
        found = first_difference(Run(port), None, rtol)
        if found is None or found.layer is None:
            raise
        raise ParityError(report(head, found)) from error


def is_close(theirs: np.ndarray, ours: np.ndarray, rtol: float) -> bool:
    """True for arrays of one shape that differ by no more than `rtol` of torch's scale."""
    if theirs.shape != ours.shape:
        return False
    if theirs.dtype.kind in "biu":
        return bool(np.array_equal(theirs, ours))
    return distance(theirs, ours).relative <= rtol


def matched(theirs: np.ndarray, ours: np.ndarray) -> Match | None:
    """Two outputs, as the caller laid them over each other."""
    return Match(theirs, ours, distance(theirs, ours), "") if theirs.shape == ours.shape else None


_ROUNDED = (
    "cause: this device rounds the factors of matrix products, and unrounded the outputs agree\n"
    '  mend:  with jax.default_matmul_precision("highest"): ...; or a looser rtol='
)


def _agrees_unrounded(port: Port, theirs: Mapping[str, np.ndarray], rtol: float) -> bool:
    """True if full precision in JAX's matrix products is all that lacks: TPUs and GPUs round by default."""
    with jax.default_matmul_precision("highest"):
        ours = port.in_torch_layout(port.side.outputs_of(port.ours, port.run_jax))
    return all(is_close(theirs[name], ours[name], rtol) for name in theirs)


def _head(name: str, theirs: np.ndarray, ours: np.ndarray, rtol: float) -> str:
    what = f'output "{name}"' if name else "output"
    if theirs.shape != ours.shape:
        moved = ours.ndim > 2 and (ours.shape[0], ours.shape[-1], *ours.shape[1:-1]) == theirs.shape
        letters = " ".join("dhw"[5 - ours.ndim :]) if moved and ours.ndim < 6 else ""
        hint = f'; pass output_layout="n {letters} c -> n c {letters}"' if letters else "; see output_layout="
        return f"the {what} has shape {theirs.shape} in torch and {ours.shape} in JAX{hint}"
    return f"the {what} differs (rtol={rtol:g}): {distance_line(distance(theirs, ours))}"


def _other_outputs(theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> str:
    shapes = [{name or "output": a.shape for name, a in side.items()} for side in (theirs, ours)]
    return (
        f"torch returns {shapes[0]} and JAX {shapes[1]}; choose what is to be compared with "
        "torch_call=lambda module, *inputs: module(*inputs)[0], call=lambda model, *inputs: ..."
    )
