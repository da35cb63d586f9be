"""warnings: where the two models are constructed differently, before anything runs.

Right weights are not enough. Every library has its own defaults, and those that differ are listed with the
argument that makes them torch's.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from jaxstate.binding import Binding
from jaxstate.errors import ParityError
from jaxstate.settings import (
    MENDS,
    Setting,
    Warnings,
    gelu_of,
    other_gelu,
    primitives_in,
    settings_of,
    torch_settings,
    unlike,
)
from jaxstate.testing._layers import Run
from jaxstate.testing._port import Layouts, Port


def warnings(
    torch_module: Any,
    model: Any,
    *inputs: Any,
    binding: Binding | None = None,
    kwargs: Mapping[str, Any] | None = None,
    call: Callable[..., Any] | None = None,
    input_layout: Layouts = None,
) -> Warnings:
    """List the settings of layers that differ: eps, padding, strides, momentum, heads, modes, GELU.

    Nothing is computed. Weights are not looked at.

    Args:
        torch_module: the original, in the mode in which it will be used.
        model: as for `assert_same_outputs`.
        *inputs: in torch's layout; needed for a Linen module, and to see which GELU an NNX one computes.
        binding: of the model; its own reading by default.
        kwargs, call, input_layout: as for `assert_same_outputs`.

    Returns:
        a table; `unpaired` names torch's modules that could not be compared, as those in a scan.

    Raises:
        ParityError: no layers could be paired.
    """
    port = Port(torch_module, model, inputs, binding, kwargs or {}, call=call, input_layout=input_layout)
    run = Run(port)
    pairs = [pair for pair in run.pairs if pair.is_layer]
    if not pairs:
        raise ParityError(_NONE)
    modules = dict(torch_module.named_modules())
    found = [
        row
        for pair in pairs
        for row in unlike(
            pair.name, torch_settings(modules[pair.name]), pair.module.path, settings_of(pair.module.module)
        )
    ]
    return Warnings((*found, *(_gelu(port) if inputs else ())), run.unpaired)


_NONE = (
    "no layer of torch's was found in the JAX model: pass the inputs, which a Linen module is read with, or "
    "the binding= that pairs the layers"
)


def _gelu(port: Port) -> Iterator[Setting]:
    """Which GELU either side computes."""
    kinds = {name: kind for name, m in port.theirs.named_modules() if (kind := gelu_of(m))}
    if (found := other_gelu(kinds, _primitives(port))) is not None:
        name, ours = found
        mend = port.spelled(f"{MENDS[kinds[name]]}, not {MENDS[ours]}")
        yield Setting(name, "", "gelu", kinds[name], ours, mend)


def _primitives(port: Port) -> set[str]:
    """The names of all primitives in the JAX model's program; none if it does not run."""
    try:
        program = jax.make_jaxpr(lambda: jax.tree.leaves(port.side.returned(port.ours, {}, port.run_jax)))()
    except Exception:  # the caller's code, which is not what is asked about
        return set()
    return set(primitives_in(program.jaxpr))
