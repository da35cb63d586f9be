"""torch's optimizers as optax transformations, and their states to and from torch's own dicts."""

from jaxstate.optim._adam import adam as adam
from jaxstate.optim._adamw import adamw as adamw
from jaxstate.optim._add_param_group import add_param_group as add_param_group
from jaxstate.optim._load_state_dict import load_state_dict as load_state_dict
from jaxstate.optim._param_groups import ParamGroup as ParamGroup
from jaxstate.optim._sgd import sgd as sgd
from jaxstate.optim._state import State as State
from jaxstate.optim._state import param_groups as param_groups
from jaxstate.optim._state import set_hyperparameters as set_hyperparameters
from jaxstate.optim._state_dict import state_dict as state_dict
