"""Move weights and training between PyTorch and JAX: pure functions to and from torch's state_dict."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jaxstate.alignment import Alignment as Alignment
from jaxstate.arrays.lazy import LazyArray as LazyArray
from jaxstate.binding import Binding as Binding
from jaxstate.comparison import Comparison as Comparison
from jaxstate.convert import align as align
from jaxstate.convert import bind as bind
from jaxstate.convert import load_state_dict as load_state_dict
from jaxstate.convert import state_dict as state_dict
from jaxstate.errors import BindingError as BindingError
from jaxstate.errors import CheckpointError as CheckpointError
from jaxstate.errors import FileError as FileError
from jaxstate.errors import JaxstateError as JaxstateError
from jaxstate.errors import LayoutError as LayoutError
from jaxstate.errors import OptimizerError as OptimizerError
from jaxstate.errors import ParityError as ParityError
from jaxstate.errors import StateDictError as StateDictError
from jaxstate.io import load as load
from jaxstate.io import save as save
from jaxstate.layout import Layout as Layout
from jaxstate.rules.declared import JaxOnly as JaxOnly
from jaxstate.rules.declared import Sum as Sum
from jaxstate.rules.declared import Tied as Tied
from jaxstate.rules.declared import TorchOnly as TorchOnly
from jaxstate.rules.fused import Fused as Fused
from jaxstate.rules.padded import Padded as Padded
from jaxstate.rules.rule import Rule as Rule

if TYPE_CHECKING:
    from jaxstate import averaging as averaging
    from jaxstate import containers as containers
    from jaxstate import display as display
    from jaxstate import optim as optim
    from jaxstate import orbax as orbax
    from jaxstate import sharded as sharded
    from jaxstate import testing as testing
    from jaxstate.containers import Checkpoint as Checkpoint
    from jaxstate.containers import load_checkpoint as load_checkpoint

_ROOMS = ("averaging", "containers", "display", "optim", "orbax", "sharded", "testing")
_IN_CONTAINERS = ("Checkpoint", "load_checkpoint")


def __getattr__(name: str) -> Any:
    """Rooms that not every program enters are opened when they are named; they take most of the time."""
    if name in _ROOMS:
        return import_module(f"jaxstate.{name}")
    if name in _IN_CONTAINERS:
        return getattr(import_module("jaxstate.containers"), name)
    raise AttributeError(f"module 'jaxstate' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS, *_IN_CONTAINERS])
