"""Checkpoints of whole trainings through Orbax: the one room that knows it."""

from jaxstate.orbax._checkpointer import Best as Best
from jaxstate.orbax._checkpointer import Checkpointer as Checkpointer
from jaxstate.orbax._from_torch import from_torch as from_torch
from jaxstate.orbax._restore import Restored as Restored
from jaxstate.orbax._restore import restore as restore
from jaxstate.orbax._save import save as save
from jaxstate.orbax._state_dict import state_dict as state_dict
from jaxstate.orbax._to_torch import to_torch as to_torch
