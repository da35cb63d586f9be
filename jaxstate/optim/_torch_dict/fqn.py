"""FQN: optimizer dicts that go by the names of parameters, as `torch.distributed.checkpoint` has them.

Three forms of one thing. Ids: `state[0]["exp_avg"]`. Names ("fully qualified", hence FQN):
`state["fc.weight"]["exp_avg"]`, groups list names. Flat: `"state.fc.weight.exp_avg"`, and each parameter has
all options of its group, `"param_groups.fc.weight.lr"`. Groups are told by their members.

https://docs.pytorch.org/docs/stable/distributed.checkpoint.html (get_optimizer_state_dict)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxstate.arrays.foreign import as_array
from jaxstate.errors import OptimizerError, near_names, quoted

Keys = Literal["id", "fqn", "flat"]


def keyed(osd: Mapping[str, Any], names: Sequence[str], keys: Keys) -> dict[str, Any]:
    """A dict of ids in another form.

    Args:
        names: of the parameters, by id.

    Raises:
        OptimizerError: a form that there is not; a group that has no parameter to lie at, in a flat dict.

    >>> osd = {"state": {0: {"step": 3.0}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    >>> keyed(osd, ["fc.weight"], "fqn")
    {'state': {'fc.weight': {'step': 3.0}}, 'param_groups': [{'lr': 0.1, 'params': ['fc.weight']}]}
    >>> keyed(osd, ["fc.weight"], "flat")
    {'state.fc.weight.step': 3.0, 'param_groups.fc.weight.lr': 0.1}
    """
    if keys == "id":
        return dict(osd)
    if keys not in ("fqn", "flat"):
        raise OptimizerError(f'keys is "id", "fqn" or "flat", not {keys!r}')
    named = {
        "state": {names[i]: entry for i, entry in osd["state"].items()},
        "param_groups": [
            {**group, "params": [names[i] for i in group["params"]]} for group in osd["param_groups"]
        ],
    }
    return named if keys == "fqn" else _flat(named)


def with_ids(osd: Any, rows: Sequence[Sequence[str]]) -> Any:
    """A dict of any of the forms as one of ids; what is none of them is left to be refused.

    Args:
        rows: the names of the parameters of each group of the optimizer.

    Raises:
        OptimizerError: names that are missing or unexpected, and groups that divide them otherwise.
    """
    if not isinstance(osd, Mapping):
        return osd
    if osd and all(isinstance(key, str) and key.startswith(("state.", "param_groups.")) for key in osd):
        osd = _nested(osd)
    return _numbered(osd, rows) if _is_named(osd) else osd


def _flat(osd: Mapping[str, Any]) -> dict[str, Any]:
    if any(not group["params"] for group in osd["param_groups"]):
        raise OptimizerError("a flat dict has no place for the options of a group without parameters")
    state = {f"state.{n}.{k}": value for n, entry in osd["state"].items() for k, value in entry.items()}
    groups = {
        f"param_groups.{name}.{key}": value
        for group in osd["param_groups"]
        for name in group["params"]
        for key, value in group.items()
        if key != "params"
    }
    return {**state, **groups}


def _nested(osd: Mapping[str, Any]) -> dict[str, Any]:
    """A flat dict as one by names, with a group for each parameter. What follows a name has no dot."""
    state: dict[str, dict[str, Any]] = {}
    options: dict[str, dict[str, Any]] = {}
    for key, value in osd.items():
        place, _, rest = key.partition(".")
        name, _, last = rest.rpartition(".")
        (state if place == "state" else options).setdefault(name, {})[last] = value
    groups = [{**row, "params": [name]} for name, row in options.items()]
    return {"state": state, "param_groups": groups}


def _is_named(osd: Mapping[str, Any]) -> bool:
    """True if groups list names. Digits are no name but an id that JSON has made a string."""
    groups = osd.get("param_groups")
    if not isinstance(groups, Sequence) or not all(isinstance(g, Mapping) for g in groups):
        return False
    lists = [group.get("params", ()) for group in groups]
    members = [name for names in lists if isinstance(names, list | tuple) for name in names]
    return bool(members) and all(isinstance(name, str) and not name.isdigit() for name in members)


def _numbered(osd: Mapping[str, Any], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    group_of = {name: group for group in osd["param_groups"] for name in group["params"]}
    if problems := [*_strangers(osd, group_of, rows), *_divided(group_of, osd["param_groups"], rows)]:
        raise OptimizerError(
            "Error(s) in loading an optimizer state_dict by names:\n\t" + "\n\t".join(problems)
        )
    orders = [_order(group_of, row) for row in rows]
    ids = {name: i for i, name in enumerate(name for row in orders for name in row)}
    groups = [_group(group_of, row, ids) for row in orders]
    return {"state": {ids[name]: entry for name, entry in osd["state"].items()}, "param_groups": groups}


def _strangers(
    osd: Mapping[str, Any], group_of: Mapping[str, Any], rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    wanted = [name for row in rows for name in row]
    missing = [name for name in wanted if name not in group_of]
    strange = [name for name in dict.fromkeys([*group_of, *osd["state"]]) if name not in wanted]
    if missing:
        yield f"Missing parameter(s): {quoted(missing)}"
    if strange:
        yield f"Unexpected parameter(s): {quoted(map(str, strange))}"
    for name, near in near_names(missing, map(str, strange)).items():
        yield f'Did you mean "{near}" for "{name}"?'


def _divided(
    group_of: Mapping[str, Any], groups: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    """A sentence for each group that the file does not have as it is."""
    flat = all(len(group["params"]) == 1 for group in groups)
    for i, row in enumerate(rows):
        found = [group_of[name] for name in row if name in group_of]
        if others := [name for group in found for name in group["params"] if name not in row]:
            yield f"group {i} of the optimizer lacks {quoted(dict.fromkeys(others))}, as the file has it"
        for key in dict.fromkeys(
            key for group in found for key in group if key not in ("params", "param_names")
        ):
            values = [group.get(key) for group in found]
            if any(not _same(value, values[0]) for value in values):
                yield f"group {i} of the optimizer has one {key}, and the file has {_listed(values)}"
        if not flat and len({id(group) for group in found}) > 1:
            yield f"group {i} of the optimizer is several groups in the file: {quoted(row)}"


def _order(group_of: Mapping[str, Any], row: Sequence[str]) -> list[str]:
    """The members of a group: in the file's order if it is to be kept, which the flat form has not."""
    found = group_of[row[0]] if row else {}
    kept = "param_names" in found and sorted(found["params"]) == sorted(row)
    return list(found["params"] if kept else row)


def _group(group_of: Mapping[str, Any], row: Sequence[str], ids: Mapping[str, int]) -> dict[str, Any]:
    found = group_of[row[0]] if row else {}
    names = {"param_names": list(row)} if "param_names" in found else {}
    return {**found, **names, "params": [ids[name] for name in row]}


def _same(one: Any, other: Any) -> bool:
    left, right = as_array(one), as_array(other)
    if left is None or right is None:
        return type(one) is type(other) and one == other
    return np.array_equal(left, right)


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(dict.fromkeys(map(repr, values)))
