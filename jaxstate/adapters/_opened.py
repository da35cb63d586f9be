"""A model that is opened: its leaves, and how to close it around others. To read a graph once is enough."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple


class Opened(NamedTuple):
    """What `load_state_dict` asks of a model.

    Attributes:
        leaves: parameters and buffers by dotted path; they may be abstract.
        with_leaves: a new model with these leaves; whatever is not given stays what it was.
        without_values: paths of random state that is abstract: no file can give it a value.
    """

    leaves: Mapping[str, Any]
    with_leaves: Callable[[Mapping[str, Any]], Any]
    without_values: Sequence[str] = ()
