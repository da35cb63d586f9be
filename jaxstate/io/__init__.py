"""Bytes on disk <-> plain Python objects with numpy arrays; knows nothing of models, and needs no torch."""

from ._files import load as load
from ._files import save as save
from ._records import Global as Global
from ._records import Opaque as Opaque
from ._records import Raw as Raw
from ._records import Storage as Storage
