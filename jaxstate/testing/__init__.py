"""The proof that a port is right: the same outputs, gradients and training, or the layer where they part."""

from jaxstate.settings import Warnings as Warnings
from jaxstate.testing._compare import LayerTable as LayerTable
from jaxstate.testing._compare import compare as compare
from jaxstate.testing._distance import Distance as Distance
from jaxstate.testing._distance import distance as distance
from jaxstate.testing._distance import kl_divergence as kl_divergence
from jaxstate.testing._round_trip import assert_round_trip as assert_round_trip
from jaxstate.testing._same_gradients import assert_same_gradients as assert_same_gradients
from jaxstate.testing._same_outputs import assert_same_outputs as assert_same_outputs
from jaxstate.testing._same_training import assert_same_training as assert_same_training
from jaxstate.testing._warnings import warnings as warnings
