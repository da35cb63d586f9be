"""Flattens: where a model merges image axes that torch would have merged in another order.

JAX keeps an image as (H, W, C) and torch as (C, H, W). Wherever the two are flattened, their vectors differ
by a permutation, and so do the parameters that meet the vector: a Linear's rows, a BatchNorm's scale, and
for an image that is unflattened, the columns that made it. Which they are is read from the program itself:
the function is traced, never run, and its dimensions are followed from the convolutions to the leaves.

Convolutions are all that names an axis. An image that none reads or writes has no channel to speak of: a
model that flattens its input straight into a linear layer gets no answer, and needs to be told.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax

from jaxstate.adapters._facts import Facts, Value
from jaxstate.adapters._labels import labels
from jaxstate.adapters._merged import Merged
from jaxstate.adapters._programs import follow
from jaxstate.adapters._verdict import axis_name, verdict
from jaxstate.errors import BindingError


def find_flattens(
    function: Callable[..., Any], leaves: Mapping[str, Any], *inputs: Any, settled: Collection[str] = ()
) -> dict[str, dict[int, Merged]]:
    """Find the dimensions of a model's leaves that torch keeps in another order, by tracing it.

    Args:
        function: pure, of the dict of leaves and the inputs.
        leaves: each leaf by its dotted path; arrays or `jax.ShapeDtypeStruct`.
        *inputs: examples, of which only shapes and dtypes matter.
        settled: paths of leaves that the caller decides on; they get no entry and no error.

    Returns:
        For each leaf path, for each dimension that must be permuted, its axes.

    Raises:
        BindingError: a leaf meets image axes that cannot be followed to it, or that torch may have
            merged in either order.

    >>> def model(leaves, image):
    ...     axes = ("NHWC", "HWIO", "NHWC")
    ...     image = jax.lax.conv_general_dilated(image, leaves["conv"], (1, 1), "SAME", None, None, axes)
    ...     return image.reshape(2, -1) @ leaves["fc"]
    >>> shapes = {"conv": (3, 3, 1, 6), "fc": (4 * 5 * 6, 10)}
    >>> leaves = {path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in shapes.items()}
    >>> find_flattens(model, leaves, jax.ShapeDtypeStruct((2, 4, 5, 1), "float32"))
    {'fc': {0: Merged(axes=(('h', 4), ('w', 5), ('c', 6)), torch=('c', 'h', 'w'))}}
    """
    facts, met = _trace(function, leaves, inputs)
    known = labels(facts)
    answers = {
        (path, i): verdict(facts, known, facts.axes.resolve(dim))
        for path, dims in met.items()
        if path not in settled
        for i, dim in enumerate(dims)
    }
    if problems := {place: why for place, why in answers.items() if isinstance(why, str)}:
        raise BindingError("\n".join(_problems(problems)))
    found: dict[str, dict[int, Merged]] = {}
    for (path, i), answer in answers.items():
        if isinstance(answer, Merged):
            found.setdefault(path, {})[i] = answer
    return found


def find_images(
    function: Callable[..., Any], leaves: Mapping[str, Any], *inputs: Any
) -> dict[str, tuple[str, ...]]:
    """Name the dimensions of leaves that hold an image unmerged: each axis is a dimension of its own.

    Such is the kernel of a linear layer over the last three axes, or a norm's scale over all of them.
    The arguments are those of `find_flattens`.

    Returns:
        For each leaf with a channel and a spatial dimension: a name for each dimension, or "".

    >>> def model(leaves, image):
    ...     axes = ("NHWC", "HWIO", "NHWC")
    ...     image = jax.lax.conv_general_dilated(image, leaves["conv"], (1, 1), "SAME", None, None, axes)
    ...     return jax.numpy.tensordot(image, leaves["fc"], 3)
    >>> shapes = {"conv": (3, 3, 1, 6), "fc": (4, 5, 6, 10)}
    >>> leaves = {path: jax.ShapeDtypeStruct(shape, "float32") for path, shape in shapes.items()}
    >>> find_images(model, leaves, jax.ShapeDtypeStruct((2, 4, 5, 1), "float32"))
    {'fc': ('h', 'w', 'c', '')}
    """
    facts, met = _trace(function, leaves, inputs)
    known = labels(facts)
    resolve = facts.axes.resolve
    named = {path: tuple(axis_name(known, resolve(dim)) for dim in dims) for path, dims in met.items()}
    return {path: names for path, names in named.items() if "c" in names and {*names} - {"c", ""}}


def _trace(function: Callable[..., Any], leaves: Mapping[str, Any], inputs: tuple[Any, ...]):
    """All facts of the program, and the dimensions of each leaf."""
    jaxpr = jax.make_jaxpr(function)(dict(leaves), *inputs).jaxpr
    facts, paths = Facts(), sorted(leaves)
    values = [
        Value(facts.fresh(getattr(var.aval, "shape", ())), i < len(paths), i >= len(paths))
        for i, var in enumerate(jaxpr.invars)
    ]
    follow(facts, jaxpr, values)
    return facts, {path: value.dims for path, value in zip(paths, values, strict=False)}


def _problems(problems: Mapping[tuple[str, int], str]) -> Iterator[str]:
    """One sentence for each module and reason."""
    places: dict[tuple[str, str], list[str]] = {}
    for (path, i), why in problems.items():
        module = path.rpartition(".")[0] or path
        places.setdefault((module, why), []).append(f'dimension {i} of "{path}"')
    for (module, why), where in places.items():
        yield (
            f"cannot tell torch's order of {', '.join(where)}: {why}. "
            f'Say what torch flattens there: flatten={{"{module}": (C, H, W)}}'
        )
