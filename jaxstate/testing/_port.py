"""Port: a torch module, the JAX model that is to equal it, and inputs to try them with.

Inputs are given once, in torch's layout. What else has to be said for both to take them is said here, and
every comparison reads from it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from jaxstate.adapters import _equinox
from jaxstate.arrays.foreign import as_array
from jaxstate.binding import Binding
from jaxstate.convert import bind, state_dict
from jaxstate.errors import LayoutError, ParityError
from jaxstate.layout import Layout
from jaxstate.testing import _equinox_side, _haiku_side, _linen_side, _nnx_side, _plain_side
from jaxstate.testing._calls import Module
from jaxstate.testing._torch_side import as_tensors, check_module, entries_of

Layouts = str | Sequence[str | None] | None


@dataclass(frozen=True, eq=False)
class Port:
    """Both models and how they are called; the arguments of `assert_same_outputs`, by the same names."""

    theirs: Any
    ours: Any
    inputs: tuple[Any, ...]
    given: Binding | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    torch_kwargs: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[..., Any] | None = None
    torch_call: Callable[..., Any] | None = None
    input_layout: Layouts = None
    output_layout: Layouts = None

    def __post_init__(self):
        check_module(self.theirs)
        if drawn := self.side.drawing(self.ours):
            raise ParityError(
                f"the JAX model draws at random in {', '.join(drawn)}: call model.eval(), or set "
                "deterministic=True; both sides are run in the mode that they are in"
            )

    @property
    def side(self) -> ModuleType:
        """The file that knows how to run this kind of model."""
        if isinstance(self.ours, nnx.Module):
            return _nnx_side
        if isinstance(self.ours, linen.Module):
            return _linen_side
        if _haiku_side.recognises(self.ours):
            return _haiku_side
        return _equinox_side if _equinox.recognises(self.ours) else _plain_side

    def spelled(self, mend: str) -> str:
        """A mend in the words of the model's library; all are written in NNX's."""
        for word, own in self.side.WORDS.items():
            mend = mend.replace(word, own)
        return mend

    @cached_property
    def jax_inputs(self) -> tuple[Any, ...]:
        """The inputs in JAX's layout."""
        return self.batch_in_jax(self.inputs)

    def run_torch(self, module: Any) -> Any:
        """Call torch's module with the inputs."""
        inputs = as_tensors(self.inputs, module)
        call = self.torch_call or (lambda m, *xs, **kw: m(*xs, **kw))
        return call(module, *inputs, **self.torch_kwargs)

    def run_jax(self, model: Any) -> Any:
        """Call the JAX model with the inputs."""
        call = self.call or self.side.call
        return call(model, *self.jax_inputs, **self.kwargs)

    def in_torch_layout(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """JAX's outputs with the axes that torch's have."""
        layouts = _each(self.output_layout, tuple(outputs.values()))
        pairs = zip(outputs.items(), layouts, strict=True)
        return {name: layout(a) if layout else a for (name, a), layout in pairs}

    def batch_in_jax(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        """Other arrays in place of the inputs, in JAX's layout."""
        layouts = _each(self.input_layout, batch)
        return tuple(_in_jax(v, layout) for v, layout in zip(batch, layouts, strict=True))

    @cached_property
    def own(self) -> Binding | None:
        """How the model reads itself, where it can and where that has torch's keys and shapes."""
        try:
            return self._fitting(self.side.bound(self.ours, self.jax_inputs, self.kwargs))
        except Exception:  # tracing runs the caller's code, and this port may be what does not run
            return None

    @cached_property
    def binding(self) -> Binding | None:
        """Which layer is which: as the model reads itself, also untraced; else as the caller says."""
        return self.own or self.given or self._untraced()

    def _untraced(self) -> Binding | None:
        try:
            return self._fitting(bind(self.ours, flatten={}))
        except Exception:
            return None

    def _fitting(self, binding: Binding) -> Binding | None:
        shapes = {key: a.shape for key, a in entries_of(self.theirs).items()}
        return binding if binding.shapes == shapes else None

    @cached_property
    def modules(self) -> list[Module]:
        """The modules of the JAX model."""
        return self.side.modules_of(self.ours, self.run_jax)

    @cached_property
    def held(self) -> Mapping[str, np.ndarray]:
        """torch's arrays as the JAX model holds them by its own reading; nothing where it has none."""
        return {} if self.own is None else state_dict(self.side.tree_of(self.ours), self.own)

    def needed_binding(self) -> Binding:
        """The caller's Binding, or the model's own.

        Raises:
            ParityError: there is none that fits torch's keys.
        """
        binding = self.given or self.own or self._untraced()
        if binding is None:
            raise ParityError(
                "the model does not read as torch's module: print(js.bind(model, ...)) beside "
                "list(torch_module.state_dict()), and pass the binding=js.bind(model, rules=[...]) that fits"
            )
        return binding


def _each(layouts: Layouts, values: tuple[Any, ...]) -> list[Layout | None]:
    """A layout for each value; a single one is for every array of its rank."""
    if layouts is None:
        return [None] * len(values)
    if isinstance(layouts, str):
        layout = Layout(layouts)
        fitting = [_rank(v) == len(layout.left) for v in values]
        if not any(fitting):
            raise LayoutError(f'"{layouts}" fits none of these arrays: {[_shape(v) for v in values]}')
        return [layout if fits else None for fits in fitting]
    if len(layouts) != len(values):
        raise LayoutError(
            f"{len(layouts)} layouts for {len(values)} arrays; say None for one that is as it is"
        )
    return [Layout(pattern) if pattern else None for pattern in layouts]


def _in_jax(value: Any, layout: Layout | None) -> Any:
    array = as_array(value)
    if array is None:
        return value
    return jnp.array(layout.inverse(np.asarray(array)) if layout else array)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def _rank(value: Any) -> int:
    return len(_shape(value))
