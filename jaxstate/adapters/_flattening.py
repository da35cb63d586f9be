"""Where a model flattens images into vectors: its rules, with the axes in torch's order."""

from collections.abc import Sequence
from typing import Any

from jaxstate.adapters._options import Options
from jaxstate.adapters._reading import Reading


def with_flattens(rules: Sequence[Any], reading: Reading, options: Options) -> Sequence[Any]:
    return rules
