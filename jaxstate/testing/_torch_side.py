"""torch's side of a comparison: run a module, or watch it run, and leave it as it was.

torch is never imported here. Whoever passes a torch module has done so.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxstate.arrays.foreign import as_array, as_numpy
from jaxstate.errors import ParityError
from jaxstate.testing._arrays import named_arrays
from jaxstate.testing._calls import Call

Run = Callable[[Any], Any]  # of a module: calls it with the inputs at hand


def torch() -> Any:
    """The torch that the caller imported."""
    return sys.modules["torch"]


def is_torch_module(value: Any) -> bool:
    """True for a torch.nn.Module, recognised without importing torch."""
    return "torch" in sys.modules and isinstance(value, torch().nn.Module)


def check_module(module: Any) -> None:
    """Refuse what cannot be compared.

    Raises:
        TypeError: no torch module.
        ParityError: a module in training mode that draws at random.
    """
    if not is_torch_module(module):
        raise TypeError(f"the first argument is a torch.nn.Module, not {type(module).__name__}")
    if drawn := [name or "the module" for name, m in module.named_modules() if _draws(m)]:
        raise ParityError(
            f"torch's module is in training mode, where it draws at random: {', '.join(drawn)}. "
            "Both sides are run in the mode that they are in: call torch_module.eval(), or set p=0"
        )


def _draws(module: Any) -> bool:
    rate = getattr(module, "p", 0) if "Dropout" in type(module).__name__ else getattr(module, "dropout", 0)
    return bool(module.training) and isinstance(rate, int | float) and rate > 0


def as_tensors(values: tuple[Any, ...], module: Any) -> tuple[Any, ...]:
    """The inputs as tensors in memory of their own, where the module is; what is no array stays."""
    device = next((p.device for p in module.parameters()), "cpu")
    return tuple(v if as_array(v) is None else _tensor(v).to(device) for v in values)


def _tensor(value: Any) -> Any:
    if isinstance(value, torch().Tensor):
        return value.detach().clone()
    array = np.array(as_numpy(value))
    if array.dtype.name == "bfloat16":
        return torch().from_numpy(array.view(np.int16)).view(torch().bfloat16)
    return torch().from_numpy(array)


@contextmanager
def unchanged(module: Any) -> Iterator[None]:
    """Put back, in the end, every buffer that running the module has changed or replaced."""
    kept = [(sub, dict(sub._buffers)) for sub in module.modules()]
    values = [(b, b.detach().clone()) for _, buffers in kept for b in buffers.values() if b is not None]
    try:
        yield
    finally:
        with torch().no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        for sub, buffers in kept:
            sub._buffers.update(buffers)


def outputs_of(module: Any, run: Run) -> dict[str, np.ndarray]:
    """What the module returns, as arrays by name."""
    with torch().no_grad(), unchanged(module):
        return {name: np.array(a) for name, a in named_arrays(run(module)).items()}


@dataclass
class Watch:
    """What has been called so far, in the order in which the calls ended."""

    calls: list[Call] = field(default_factory=list)
    begun: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)


def watched(module: Any, run: Run, during: Callable[[Watch], Any] | None = None) -> list[Call]:
    """Run a module and note every call of every module in it. Its hooks are gone afterwards.

    Args:
        module: it runs as it is, in its own mode.
        run: calls it.
        during: makes a context to run in, of what has been noted so far.
    """
    watch, handles = Watch(), []
    try:
        for name, sub in module.named_modules():
            handles += _hooks(watch, name, sub)
        with torch().no_grad(), unchanged(module):
            if during is None:
                run(module)
            else:
                with during(watch):
                    run(module)
    finally:
        for handle in handles:
            handle.remove()
    return watch.calls


def _hooks(watch: Watch, name: str, module: Any) -> list[Any]:
    """Inputs are copied before the call, since an activation may be computed in their place."""
    open_calls: list[tuple[Any, Any]] = []

    def before(_: Any, args: Any, kwargs: Any) -> None:
        watch.begun[name] += 1
        open_calls.append((_copied(args), _copied(kwargs)))

    def after(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        args, kwargs = open_calls.pop()
        outputs = {key: np.array(a) for key, a in named_arrays(output).items()}
        inputs = named_arrays((*args, kwargs))
        kind, number = type(module).__name__, watch.ended[name]
        watch.calls.append(Call(name, kind, number, inputs, outputs, args, kwargs))
        watch.ended[name] += 1

    return [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after, with_kwargs=True),
    ]


def _copied(value: Any) -> Any:
    if isinstance(value, torch().Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    return {key: _copied(v) for key, v in value.items()} if type(value) is dict else value


def called_again(module: Any, call: Call, args: tuple[Any, ...] | None = None, **changes: Any) -> Any:
    """The module's first output where it is called as it was, or with other arguments."""
    bound = arguments_of(module, call, args)
    bound.arguments.update(changes)
    with torch().no_grad():
        output = module(*bound.args, **bound.kwargs)
    return next(iter(named_arrays(output).values()))


def arguments_of(module: Any, call: Call, args: tuple[Any, ...] | None = None) -> inspect.BoundArguments:
    """The arguments of a call by their names, however they were passed."""
    given = call.args if args is None else args
    return inspect.signature(module.forward).bind(*given, **(call.kwargs or {}))


def entries_of(module: Any) -> dict[str, np.ndarray]:
    """The module's state_dict, as numpy arrays that share its memory."""
    state: Mapping[str, Any] = module.state_dict()
    return {key: array for key, value in state.items() if (array := as_array(value)) is not None}
