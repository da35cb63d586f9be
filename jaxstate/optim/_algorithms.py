"""All algorithms, by the name of torch's class: for a store that keeps no functions."""

from collections.abc import Mapping
from types import MappingProxyType

from jaxstate.optim._adadelta import ADADELTA
from jaxstate.optim._adafactor import ADAFACTOR
from jaxstate.optim._adagrad import ADAGRAD
from jaxstate.optim._adam import ADAM
from jaxstate.optim._adamax import ADAMAX
from jaxstate.optim._adamw import ADAMW
from jaxstate.optim._algorithm import Algorithm
from jaxstate.optim._asgd import ASGD
from jaxstate.optim._lbfgs.constructor import LBFGS
from jaxstate.optim._muon import MUON
from jaxstate.optim._nadam import NADAM
from jaxstate.optim._radam import RADAM
from jaxstate.optim._rmsprop import RMSPROP
from jaxstate.optim._rprop import RPROP
from jaxstate.optim._sgd import SGD
from jaxstate.optim._sparse_adam import SPARSE_ADAM

ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        algorithm.name: algorithm
        for algorithm in (
            *(ADADELTA, ADAFACTOR, ADAGRAD, ADAM, ADAMAX, ADAMW, ASGD, LBFGS),
            *(MUON, NADAM, RADAM, RMSPROP, RPROP, SGD, SPARSE_ADAM),
        )
    }
)
