"""assert_same_training: some steps on both sides, from where both are now, lead to the same weights."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxstate import optim
from jaxstate.arrays.foreign import as_array
from jaxstate.binding import Binding, matches
from jaxstate.convert import state_dict
from jaxstate.errors import ParityError
from jaxstate.testing._distance import scale
from jaxstate.testing._port import Layouts, Port
from jaxstate.testing._torch_side import as_tensors, entries_of

Weights = dict[str, np.ndarray]


def assert_same_training(
    torch_module: Any,
    torch_optimizer: Any,
    model: Any,
    tx: optax.GradientTransformation,
    batches: Sequence[tuple[Any, ...]],
    *,
    torch_loss: Callable[..., Any],
    loss: Callable[..., Any],
    binding: Binding | None = None,
    opt_state: Any = None,
    input_layout: Layouts = None,
    ignore: str | Sequence[str] = (),
    rtol: float = 1e-3,
) -> None:
    """Train copies of both on the same batches: after each step all parameters and buffers are the same.

    Judged is the largest difference over the largest change since the start, so that a small learning rate
    hides nothing. Both sides compute their own gradients; in float32 rounding alone gives about 1e-5 after
    some steps, more where an optimizer divides by gradients that are nearly zero.

    Args:
        torch_module, torch_optimizer: they may have trained before; the optimizer's state is moved.
        model: as for `assert_same_outputs`.
        tx: the transformation that is to be torch's optimizer.
        batches: tuples of arrays in torch's layout.
        torch_loss, loss: `loss(model, *batch)`, a scalar of each side.
        binding: of the model; its own reading by default.
        opt_state: of `tx`, where training has begun; by default it is moved from torch's optimizer.
        input_layout: as for `assert_same_outputs`, for the arrays of a batch.
        ignore: patterns of keys that may differ: "*running_var" for Flax's BatchNorm, whose variance is the
            biased one, (n - 1) / n times torch's; a bias right before a BatchNorm, whose gradient is
            rounding alone.
        rtol: the tolerance.

    Raises:
        ParityError: naming the first step after which, and the entries in which, they differ.
    """
    __tracebackhide__ = True
    port = Port(torch_module, model, tuple(batches[0]), binding, input_layout=input_layout)
    used = binding or port.needed_binding()
    start = {key: np.array(a) for key, a in entries_of(torch_module).items()}
    patterns = [ignore] if isinstance(ignore, str) else list(ignore)
    theirs = _torch_steps(port, torch_optimizer, batches, torch_loss)
    state = _moved(torch_optimizer, tx, port, used) if opt_state is None else opt_state
    ours = _jax_steps(port, used, tx, state, batches, loss)
    for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        judged = {key: array for key, array in one.items() if not matches(key, patterns)}
        if wrong := _apart(judged, other, start, rtol):
            raise ParityError(_message(number, len(batches), wrong, rtol))


def _torch_steps(
    port: Port, optimizer: Any, batches: Sequence[Any], loss: Callable[..., Any]
) -> Iterator[Weights]:
    """The weights before, and after each step of copies of the module and its optimizer."""
    module, optimizer = copy.deepcopy((port.theirs, optimizer))
    yield {key: np.array(a) for key, a in entries_of(module).items()}
    for batch in batches:
        optimizer.zero_grad()
        loss(module, *as_tensors(batch, module)).backward()
        optimizer.step()
        yield {key: np.array(a) for key, a in entries_of(module).items()}


def _moved(optimizer: Any, tx: Any, port: Port, binding: Binding) -> Any:
    """The state of torch's optimizer in JAX; a fresh one where that has not begun."""
    opt = tx.init(port.side.parted(port.ours)[0])
    moved = _as_arrays(optimizer.state_dict())
    return optim.load_state_dict(opt, moved, binding) if moved["state"] else opt


def _jax_steps(
    port: Port, binding: Binding, tx: Any, opt: Any, batches: Sequence[Any], loss: Callable[..., Any]
) -> Iterator[Weights]:
    """The weights before, and after each step of a copy of the model."""
    params, rest, make = port.side.parted(port.ours)

    @jax.jit
    def step(params: Any, rest: Any, opt: Any, batch: Any) -> Any:
        value = lambda params: port.side.loss_and_rest(make, params, rest, loss, batch)  # noqa: E731
        grads, rest = jax.grad(value, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), rest, opt

    yield state_dict(port.side.tree_of(make(params, rest)), binding)
    for batch in batches:
        params, rest, opt = step(params, rest, opt, port.batch_in_jax(tuple(batch)))
        yield state_dict(port.side.tree_of(make(params, rest)), binding)


def _as_arrays(value: Any) -> Any:
    """An optimizer's dict with numpy arrays for tensors, in memory of their own."""
    if isinstance(value, dict):
        return {key: _as_arrays(item) for key, item in value.items()}
    return value if (array := as_array(value)) is None else np.array(array)


def _apart(theirs: Weights, ours: Weights, start: Weights, rtol: float) -> dict[str, float]:
    """The entries that differ by more than the tolerance, and by how much of the largest change.

    Before the first step nothing has changed, and the entries themselves are the measure.
    """
    keys = [key for key, array in theirs.items() if array.dtype.kind == "f"]
    missing = {key: np.inf for key in keys if key not in ours or ours[key].shape != theirs[key].shape}
    moved = {key: scale(theirs[key] - start[key]) for key in keys}
    largest = {
        kind: max((moved[k] for k in keys if _kind(k) == kind), default=0.0) for kind in ("", "running")
    }
    apart = {
        key: scale(theirs[key] - ours[key]) / (largest[_kind(key)] or scale(theirs[key]) or 1.0)
        for key in keys
        if key not in missing
    }
    return missing | {key: error for key, error in apart.items() if not error <= rtol}


def _kind(key: str) -> str:
    """Statistics move as the data does, parameters as the learning rate says: each has its own measure."""
    return "running" if key.rpartition(".")[2].startswith("running_") else ""


def _message(number: int, count: int, wrong: dict[str, float], rtol: float) -> str:
    when = f"after step {number} of {count}" if number else "before the first step"
    worst = sorted(wrong.items(), key=lambda pair: -pair[1])
    lines = [f'"{key}": {error:.2g} of the largest change' for key, error in worst[:8]]
    hint = (
        "the gradients may differ already: assert_same_gradients"
        if number == 1
        else "load torch's weights first: js.load_state_dict(model, torch_module.state_dict(), binding)"
        if number == 0
        else "one step agrees; look at what the optimizer keeps, and at schedules"
    )
    statistics = [key for key in wrong if key.endswith("running_var")]
    more = [
        "torch's running_var is the unbiased variance, n / (n - 1) times Flax's: ignore=\"*running_var\""
    ] * bool(statistics)
    return "\n\t".join([f"training differs {when} (rtol={rtol:g}):", *lines, *more, hint])
