"""What layers are set to beside their weights, in torch's words, and where two sides are set differently."""

from jaxstate.settings._gelu import MENDS as MENDS
from jaxstate.settings._gelu import gelu_named as gelu_named
from jaxstate.settings._gelu import gelu_of as gelu_of
from jaxstate.settings._gelu import other_gelu as other_gelu
from jaxstate.settings._gelu import primitives_in as primitives_in
from jaxstate.settings._jax import Settings as Settings
from jaxstate.settings._jax import settings_of as settings_of
from jaxstate.settings._pads import SAME as SAME
from jaxstate.settings._pads import same_pads as same_pads
from jaxstate.settings._rows import Setting as Setting
from jaxstate.settings._rows import Warnings as Warnings
from jaxstate.settings._rows import shown as shown
from jaxstate.settings._rows import unlike as unlike
from jaxstate.settings._torch import eps_name as eps_name
from jaxstate.settings._torch import torch_settings as torch_settings
