"""Labels: which leaves go to which optimizer, said by torch's names, as `optax.partition` takes them."""

from collections.abc import Mapping
from typing import Any

import jax

from jaxstate.binding import Binding
from jaxstate.errors import OptimizerError
from jaxstate.optim._paths import leaf_paths
from jaxstate.optim._select import Selector, select


def labels(params: Any, groups: Mapping[str, Selector], binding: Binding | None = None) -> Any:
    """A tree like the parameters, with the label of the group that chooses each.

    A model that torch trains with several optimizers, Muon for its matrices and AdamW for the rest, is
    trained by `optax.partition`; each part has its own State, and so its own state_dict.

    Args:
        params: leaves may be abstract.
        groups: by label a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: groups without labels; parameters that no group or more than one chooses; a part of a
            torch parameter.

    >>> labels({"fc": {"w": 1, "b": 2}}, {"muon": "*.w", "adamw": lambda name: name.endswith("b")})
    {'fc': {'b': 'adamw', 'w': 'muon'}}
    """
    if not isinstance(groups, Mapping):
        raise OptimizerError(f'groups is a dict by label, {{"adamw": "*.bias", ...}}, not {groups!r}')
    paths = leaf_paths(params)
    chosen = select(paths, list(groups.values()), binding)
    label_of = {path: label for label, row in zip(groups, chosen, strict=True) for path in row}
    return jax.tree.structure(params).unflatten([label_of[path] for path in paths])
