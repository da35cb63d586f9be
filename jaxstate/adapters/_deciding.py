"""Which class decides what a module is: a layer of its library, or a class that only configures one.

A class with a call of its own computes something else, whatever layer it is derived from.
"""

from collections.abc import Callable
from typing import Any


def deciding_class(
    module: Any, is_layer: Callable[[type], bool], calls: Callable[[type], bool] | None = None
) -> type | None:
    """The layer's class, or None if the module computes in a way of its own.

    Args:
        module: of any library.
        is_layer: True of the library's own layers.
        calls: True of a class that defines what its modules compute; by default one with a `__call__`.

    >>> class Layer:
    ...     def __call__(self): ...
    >>> class Configured(Layer): ...
    >>> class Another(Layer):
    ...     def __call__(self): ...
    >>> [deciding_class(made(), {Layer}.__contains__) for made in (Configured, Another)] == [Layer, None]
    True
    """
    for kind in type(module).__mro__:
        if is_layer(kind):
            return kind
        if calls(kind) if calls else "__call__" in vars(kind):
            return None
    return None


def owner_of(module: Any, is_layer: Callable[[type], bool]) -> str:
    """The class of a module that is not known, and why it is not."""
    known = next((kind.__name__ for kind in type(module).__mro__ if is_layer(kind)), None)
    name = type(module).__name__
    overridden = known and deciding_class(module, is_layer) is None
    return f"{name} (a {known} with a __call__ of its own)" if overridden else name
