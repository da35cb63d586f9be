"""Alignment: pair the names of a model with those of a file, on evidence, and never on a guess."""

from jaxstate.alignment._alignment import Alignment as Alignment
from jaxstate.alignment._alignment import Ambiguous as Ambiguous
from jaxstate.alignment._alignment import Pair as Pair
from jaxstate.alignment._alignment import align as align
from jaxstate.alignment._alignment import aligned as aligned
