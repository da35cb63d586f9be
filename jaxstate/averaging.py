"""Averaging: `torch.optim.swa_utils.AveragedModel` as a value, an average of weights and how many it is of.

Stochastic weight averaging and exponential moving averages differ in one function, `avg_fn`. A model's
parameters are averaged; its buffers are copied, or averaged too.

Izmailov et al., Averaging weights leads to wider optima and better generalization
(https://arxiv.org/abs/1803.05407);
https://docs.pytorch.org/docs/stable/optim.html#weight-averaging-swa-and-ema
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxstate import convert
from jaxstate.adapters import adapter_of
from jaxstate.arrays.foreign import as_numpy
from jaxstate.arrays.placement import place
from jaxstate.binding import Binding
from jaxstate.errors import BindingError, OptimizerError, StateDictError

# (average, new value, how many models the average is of) -> the next average
Average = Callable[[Any, Any, Any], Any]

_PREFIX = "module."


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AveragedModel:
    """A model's average.

    Args:
        module: the average: a model of the same type.
        n_averaged: int32 (), how many models it is of.
    """

    module: Any
    n_averaged: Any

    @classmethod
    def of(cls, model: Any) -> "AveragedModel":
        """The average of no models yet: a copy of one that shares no memory with it."""
        adapter = adapter_of(model)
        copies = {path: _copied(leaf) for path, leaf in adapter.leaves(model).items()}
        return cls(adapter.with_leaves(model, copies), jnp.zeros((), jnp.int32))


def get_swa_avg_fn() -> Average:
    """The mean of all models so far: a_{n+1} = a_n + (p - a_n) / (n + 1).

    >>> float(get_swa_avg_fn()(jnp.float32(1.0), jnp.float32(4.0), jnp.int32(2)))
    2.0
    """
    return lambda average, new, n: average + (new - average) / (n + 1).astype(new.dtype)


def get_ema_avg_fn(decay: float = 0.999) -> Average:
    """The exponential moving average: a_{n+1} = decay a_n + (1 - decay) p.

    Raises:
        OptimizerError: a decay that is not between 0 and 1, in torch's words.

    >>> float(get_ema_avg_fn(0.75)(jnp.float32(4.0), jnp.float32(8.0), jnp.int32(1)))
    5.0
    """
    if decay < 0.0 or decay > 1.0:
        raise OptimizerError(f"Invalid decay value {decay} provided. Please provide a value in [0,1] range.")
    return lambda average, new, n: decay * average + (1 - decay) * new


def update_parameters(
    averaged: AveragedModel,
    model: Any,
    binding: Binding | None = None,
    *,
    avg_fn: Average | None = None,
    use_buffers: bool = False,
) -> AveragedModel:
    """`AveragedModel.update_parameters`: one more model in the average. The first one is copied.

    It may be compiled; nothing is compiled anew as the count grows.

    Args:
        averaged: the average so far.
        model: the same model, trained on.
        binding: tells parameters from buffers, where the model itself does not.
        avg_fn: `get_ema_avg_fn(decay)`, or by default `get_swa_avg_fn()`.
        use_buffers: True to average buffers as well; otherwise they are the new model's. torch then averages
            the counters `num_batches_tracked` too, which JAX's models do not have.

    Raises:
        BindingError: models with other leaves than the average's, or that do not tell their buffers.

    >>> averaged = AveragedModel.of({"w": jnp.float32([0.0, 0.0])})
    >>> for w in ([1.0, 5.0], [3.0, 9.0]):
    ...     averaged = update_parameters(averaged, {"w": jnp.float32(w)}, use_buffers=True)
    >>> averaged.module["w"].tolist(), int(averaged.n_averaged)
    ([2.0, 7.0], 2)
    """
    adapter = adapter_of(averaged.module)
    old, new = adapter.leaves(averaged.module), adapter_of(model).leaves(model)
    _check_leaves(old, new)
    paths = set(old) if use_buffers else set((binding or convert.bind(model)).of_parameters().paths)
    function, n = avg_fn or get_swa_avg_fn(), averaged.n_averaged
    leaves = {
        path: _averaged(function, old[path], new[path], n) if path in paths else _cast(new[path], old[path])
        for path in old
    }
    return AveragedModel(adapter.with_leaves(averaged.module, leaves), n + 1)


def state_dict(averaged: AveragedModel, binding: Binding | None = None) -> "OrderedDict[str, np.ndarray]":
    """`AveragedModel.state_dict`: `n_averaged`, and the average's entries below `module.`.

    Args:
        averaged: the average.
        binding: as for `js.state_dict`.

    Raises:
        BindingError: leaves that do not fit the binding.
    """
    own: Any = OrderedDict(n_averaged=np.array(averaged.n_averaged, np.int64))
    own._metadata = OrderedDict({"": {"version": 1}})
    return convert.state_dict(averaged.module, binding, prefix=_PREFIX, destination=own)


def load_state_dict(
    averaged: AveragedModel,
    state_dict: Mapping[str, Any],
    binding: Binding | None = None,
    *,
    cast: bool = False,
) -> AveragedModel:
    """`AveragedModel.load_state_dict` as a pure function: a new average, placed and typed like `averaged`.

    Args:
        averaged: the template; its leaves may be abstract.
        state_dict: torch's, with `n_averaged` and keys below `module.`.
        binding, cast: as for `js.load_state_dict`.

    Raises:
        StateDictError: all that does not fit.
    """
    _check_envelope(state_dict)
    module = convert.load_state_dict(averaged.module, state_dict, binding, prefix=_PREFIX, cast=cast)
    return AveragedModel(module, place(as_numpy(state_dict["n_averaged"]), averaged.n_averaged))


def _averaged(function: Average, average: Any, new: Any, n: Any) -> Any:
    return jnp.where(n == 0, _cast(new, average), function(average, new, n).astype(average.dtype))


def _cast(new: Any, like: Any) -> Any:
    return jnp.asarray(new, like.dtype)


def _copied(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else leaf.copy()


def _check_leaves(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    shapes = {path: (old[path].shape, new[path].shape) for path in old if path in new}
    other = [
        *sorted(set(old) ^ set(new)),
        *(f"{path}: {before} and {now}" for path, (before, now) in shapes.items() if before != now),
    ]
    if other:
        raise BindingError(f"this is not the model that is averaged; they differ in {', '.join(other)}")


def _check_envelope(state_dict: Mapping[str, Any]) -> None:
    missing = [] if "n_averaged" in state_dict else ["n_averaged"]
    strange = [key for key in state_dict if key != "n_averaged" and not key.startswith(_PREFIX)]
    if missing or strange:
        raise StateDictError("AveragedModel", missing, strange)
    if (count := as_numpy(state_dict["n_averaged"])).shape != ():
        raise StateDictError(
            "AveragedModel", problems=[f"n_averaged is one number, not of shape {count.shape}"]
        )
