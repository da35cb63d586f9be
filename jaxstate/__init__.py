"""Move weights and training between PyTorch and JAX: pure functions to and from torch's state_dict."""

from jaxstate import averaging as averaging
from jaxstate import optim as optim
from jaxstate import orbax as orbax
from jaxstate.alignment import Alignment as Alignment
from jaxstate.binding import Binding as Binding
from jaxstate.binding import Comparison as Comparison
from jaxstate.convert import align as align
from jaxstate.convert import bind as bind
from jaxstate.convert import load_state_dict as load_state_dict
from jaxstate.convert import state_dict as state_dict
from jaxstate.declared import JaxOnly as JaxOnly
from jaxstate.declared import Sum as Sum
from jaxstate.declared import Tied as Tied
from jaxstate.declared import TorchOnly as TorchOnly
from jaxstate.errors import BindingError as BindingError
from jaxstate.errors import CheckpointError as CheckpointError
from jaxstate.errors import FileError as FileError
from jaxstate.errors import JaxstateError as JaxstateError
from jaxstate.errors import LayoutError as LayoutError
from jaxstate.errors import OptimizerError as OptimizerError
from jaxstate.errors import StateDictError as StateDictError
from jaxstate.io import load as load
from jaxstate.io import save as save
from jaxstate.layout import Layout as Layout
from jaxstate.rule import Rule as Rule
