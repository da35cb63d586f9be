"""Bytes on disk <-> plain Python objects with numpy arrays; knows nothing of models, and needs no torch."""

from ._constants import load_constants as load_constants
from ._files import format_of as format_of
from ._files import load as load
from ._files import save as save
from ._records import Global as Global
from ._records import Opaque as Opaque
from ._records import PerRank as PerRank
from ._records import Raw as Raw
from ._records import Storage as Storage
from ._state_dicts import state_dict_of as state_dict_of
