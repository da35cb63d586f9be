"""What training tools write around a state_dict: recognised by evidence, taken apart, and nothing lost."""

from jaxstate.containers._checkpoint import Checkpoint as Checkpoint
from jaxstate.containers._checkpoint import Recognised as Recognised
from jaxstate.containers._load import load_checkpoint as load_checkpoint
from jaxstate.containers._wrappers import Wrappers as Wrappers
from jaxstate.containers._wrappers import unwrap as unwrap
from jaxstate.containers._wrappers import wrap as wrap
