"""torch's optimizers as optax transformations, and their states to and from torch's own dicts.

Gradients are torch's: those of complex parameters are the conjugates of what jax.grad gives.
"""

from jaxstate.optim import grad_scaler as grad_scaler
from jaxstate.optim import schedulers as schedulers
from jaxstate.optim._adadelta import adadelta as adadelta
from jaxstate.optim._adafactor import adafactor as adafactor
from jaxstate.optim._adagrad import adagrad as adagrad
from jaxstate.optim._adam import adam as adam
from jaxstate.optim._adamax import adamax as adamax
from jaxstate.optim._adamw import adamw as adamw
from jaxstate.optim._add_param_group import add_param_group as add_param_group
from jaxstate.optim._asgd import asgd as asgd
from jaxstate.optim._labels import labels as labels
from jaxstate.optim._lbfgs.constructor import lbfgs as lbfgs
from jaxstate.optim._muon import muon as muon
from jaxstate.optim._nadam import nadam as nadam
from jaxstate.optim._param_groups import ParamGroup as ParamGroup
from jaxstate.optim._radam import radam as radam
from jaxstate.optim._rmsprop import rmsprop as rmsprop
from jaxstate.optim._rprop import rprop as rprop
from jaxstate.optim._sgd import sgd as sgd
from jaxstate.optim._sparse_adam import sparse_adam as sparse_adam
from jaxstate.optim._state import State as State
from jaxstate.optim._state import param_groups as param_groups
from jaxstate.optim._state import set_hyperparameters as set_hyperparameters
from jaxstate.optim._torch_dict.load_state_dict import load_state_dict as load_state_dict
from jaxstate.optim._torch_dict.state_dict import state_dict as state_dict
