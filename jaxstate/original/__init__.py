"""What a model was ported from, a torch module or its config, and where the two are set differently."""

from jaxstate.original._warnings import warnings_of as warnings_of
