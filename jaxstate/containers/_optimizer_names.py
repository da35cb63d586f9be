"""Optimizer names: wrappers are in the names of parameters too, where an optimizer's state_dict has names."""

from collections.abc import Mapping
from typing import Any

from jaxstate.containers._kinds import is_flat_optimizer, is_optimizer
from jaxstate.containers._wrappers import Wrappers, bare_name, wrappers_in


def unwrap_optimizer(osd: Any) -> tuple[Any, Wrappers]:
    """An optimizer's state_dict with the names of the bare model, and what was taken out of them.

    >>> osd = {"state": {0: {}}, "param_groups": [{"params": [0], "param_names": ["module.fc.weight"]}]}
    >>> unwrap_optimizer(osd)[0]["param_groups"]
    [{'params': [0], 'param_names': ['fc.weight']}]
    """
    if not is_optimizer(osd):
        return osd, Wrappers()
    flat = is_flat_optimizer(osd)
    wrappers = wrappers_in(_flat_names(osd) if flat else _names(osd))
    if not wrappers:
        return osd, wrappers
    return (_bare_flat(osd, wrappers) if flat else _bare(osd, wrappers)), wrappers


def _names(osd: Mapping[str, Any]) -> list[str]:
    lists = [group.get(key) for group in osd["param_groups"] for key in ("params", "param_names")]
    return [name for names in lists if isinstance(names, list) for name in names if isinstance(name, str)]


def _bare(osd: Mapping[str, Any], wrappers: Wrappers) -> dict[str, Any]:
    groups = [
        {
            key: _bare_names(value, wrappers) if key in ("params", "param_names") else value
            for key, value in group.items()
        }
        for group in osd["param_groups"]
    ]
    state = dict(zip(_bare_names(list(osd["state"]), wrappers), osd["state"].values(), strict=True))
    return {**osd, "state": state, "param_groups": groups}


def _bare_names(names: Any, wrappers: Wrappers) -> Any:
    if not isinstance(names, list):
        return names
    return [bare_name(name, wrappers) if isinstance(name, str) else name for name in names]


def _flat_names(osd: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(key.partition(".")[2].rpartition(".")[0] for key in osd))


def _bare_flat(osd: Mapping[str, Any], wrappers: Wrappers) -> dict[str, Any]:
    made = {}
    for key, value in osd.items():
        place, _, rest = key.partition(".")
        name, _, last = rest.rpartition(".")
        made[f"{place}.{bare_name(name, wrappers)}.{last}"] = value
    return made
