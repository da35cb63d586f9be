"""warnings_of: sentences on what differs between a model and its original, before anything runs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Reading
from jaxstate.binding import Binding
from jaxstate.errors import BindingError, quoted
from jaxstate.original import _config, _module
from jaxstate.original._layers import layers_of
from jaxstate.settings import MENDS, Setting, other_gelu, primitives_in

MOST_NAMES = 3


def warnings_of(reading: Reading, options: Options, binding: Binding, original: Any) -> tuple[str, ...]:
    """Every setting that breaks parity although all weights are right; what could not be compared comes last.

    Args:
        reading: of the model.
        options: with the inputs, if any, that show which GELU the model computes.
        binding: with the names that torch has.
        original: a torch module, a config of transformers, or the dictionary of a config.json.

    Raises:
        TypeError: an original of another kind.
        BindingError: a module that shares no name with the binding.
    """
    layers = layers_of(reading, binding)
    if _module.is_torch_module(original):
        _check_names(original, binding)
        side, ties = _module, ()
    elif _config.is_config(original):
        side, ties = _config, tuple(_config.other_ties(original, layers, binding))
    else:
        raise TypeError(f"{_KINDS}, not {type(original).__name__}")
    rows = side.settings_unlike(original, layers)
    gelu = _other_gelu(side.gelus_of(original), reading, options)
    lacking = list(side.not_compared(original, layers))
    rest = (f"not compared: {', '.join(lacking)}",) if lacking else ()
    return (*_sentences(rows), *gelu, *ties, *rest)


_KINDS = "original= is a torch.nn.Module, a config of transformers or the dictionary of a config.json"


def _check_names(module: Any, binding: Binding) -> None:
    theirs = list(module.state_dict())
    if theirs and set(theirs).isdisjoint(binding.keys):
        raise BindingError(
            f"the original shares no name with the model: it has {quoted(theirs[:3])}, the model "
            f"{quoted(binding.keys[:3])}; pass a part of it, original=module.model, or js.bind(..., "
            "like=module.state_dict()), or rename="
        )


def _sentences(rows: Sequence[Setting]) -> Iterator[str]:
    """One for each difference, with all layers that it is in."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        alike = groups.setdefault((row.setting, row.ours, row.theirs, row.mend), [])
        alike.append(row.name or "the model")
    for (setting, ours, theirs, mend), names in groups.items():
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        against = f" against {theirs}" if theirs else ""
        yield f"{', '.join(names[:MOST_NAMES])}{more}: {setting} {ours}{against}; mend: {mend}"


def _other_gelu(kinds: Mapping[str, str], reading: Reading, options: Options) -> Iterator[str]:
    """Seen in the program, and so with example inputs only."""
    if not kinds or not options.inputs or reading.call is None:
        return
    call: Any = reading.call
    program = jax.make_jaxpr(call)(dict(reading.leaves), *options.inputs)
    if (found := other_gelu(kinds, set(primitives_in(program.jaxpr)))) is not None:
        name, ours = found
        mend = MENDS[kinds[name]].replace("nnx.", "jax.nn.")
        yield f"{name}: gelu {ours} against {kinds[name]}; mend: {mend}"
