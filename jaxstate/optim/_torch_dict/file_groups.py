"""File groups: a file's param_groups, matched to an optimizer's.

What torch checks is checked in torch's words: how many groups, and how many parameters in each. Beyond that,
names decide where a file has them, and options must ask for the recursion that the optimizer has.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxstate.arrays.foreign import as_array
from jaxstate.errors import OptimizerError, near_names, quoted
from jaxstate.optim._algorithm import Algorithm
from jaxstate.optim._kinds import fits, is_flag
from jaxstate.optim._param_groups import ParamGroup
from jaxstate.optim._parameters import Parameters
from jaxstate.optim._state import State
from jaxstate.optim._torch_dict.state_dict import group_names


@dataclass(frozen=True)
class FileGroup:
    """One group of a file, beside the group it is loaded into.

    Args:
        index: which group.
        template: the optimizer's group.
        made: the buffers that the optimizer has for this group.
        options: the file's, in its order, and behind them what torch fills in for older files.
        names: torch's name of the parameter that each of the file's ids stands for.
        named: True if the file said so itself.
    """

    index: int
    template: ParamGroup
    made: tuple[str, ...]
    options: dict[str, Any]
    names: dict[int, str]
    named: bool

    def problems(self, algorithm: Algorithm) -> Iterator[str]:
        """A sentence for each option that the optimizer cannot take."""
        where = f"group {self.index} of the file"
        lacking = [key for key, _ in algorithm.defaults if key not in self.options]
        strange = [
            key
            for key in algorithm.hyperparameters
            if key in self.options and not fits(self.options[key], dict(algorithm.defaults)[key])
        ]
        odd = [
            k for k, v in algorithm.defaults if isinstance(v, bool) and not is_flag(self.options.get(k, v))
        ]
        yield from (f'{where} has no "{key}"' for key in lacking)
        yield from (f"{where} has {key}={self.options[key]!r}, neither True nor False" for key in odd)
        yield from (f"{where} has {key}={self.options[key]!r}, which is no number" for key in strange)
        if not lacking and not strange and not odd and (disagreeing := self._disagreeing(algorithm)):
            call = algorithm.call(self.options)
            yield f"{where} has {disagreeing}; this call makes an optimizer that the file fits: {call}"

    def _disagreeing(self, algorithm: Algorithm) -> str:
        flags = [k for k in algorithm.flags if not np.array_equal(self.options[k], self.template[k])]
        if flags:
            return ", ".join(f"{k}={self.options[k]!r} instead of {self.template[k]!r}" for k in flags)
        lacking = [name for name in algorithm.asks_for(self.options) if name not in self.made]
        return f"a {' and a '.join(lacking)}, which this optimizer does not keep" if lacking else ""

    def loaded(self, algorithm: Algorithm) -> ParamGroup:
        """The template with the file's options; what is a leaf stays one, also where the file has 0."""
        names = tuple(self.names.values()) if self.named else self.template.param_names
        made = ParamGroup.of(algorithm, self.options, self.template.paths, self.template.dtype, names)
        changed = self.template.changed(**{key: self.options[key] for key in made.numbers})
        return replace(made, numbers=changed.numbers)


def file_groups(state: State, osd: Mapping[str, Any], parameters: Parameters) -> list[FileGroup]:
    """The groups of a file beside an optimizer's.

    Raises:
        OptimizerError: a file that is no optimizer's, another number of groups or of parameters in one,
            ids that are strings or stand for two parameters, names that are not the group's.
    """
    _check_envelope(osd)
    rows = [group_names(group, parameters) for group in state.param_groups]
    _check_sizes([len(group["params"]) for group in osd["param_groups"]], [len(row) for row in rows])
    _check_ids([i for group in osd["param_groups"] for i in group["params"]], osd["state"])
    found = [group.get("param_names") for group in osd["param_groups"]]
    _check_names(found, rows)
    return [
        FileGroup(
            i,
            template,
            tuple(name for name in state.buffers if set(template.paths) & set(state.buffer(name))),
            _options(group, state.algorithm),
            dict(zip(group["params"], row if names is None else names, strict=True)),
            names is not None,
        )
        for i, (template, group, row, names) in enumerate(
            zip(state.param_groups, osd["param_groups"], rows, found, strict=True)
        )
    ]


def _options(group: Mapping[str, Any], algorithm: Algorithm) -> dict[str, Any]:
    given = {key: _plain(value) for key, value in group.items() if key not in ("params", "param_names")}
    return {**given, **{key: value for key, value in algorithm.filled if key not in given}}


def _plain(value: Any) -> Any:
    """An option without tensors: numbers that were saved as arrays of one element become 0-d arrays."""
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, np.generic):
        return value.item()
    array = as_array(value)
    return value if array is None else np.array(array.reshape(()) if array.size == 1 else array)


def _check_envelope(osd: Mapping[str, Any]) -> None:
    keys = set(osd) if isinstance(osd, Mapping) else set()
    if not {"state", "param_groups"} <= keys:
        found = quoted(map(str, keys)) or type(osd).__name__
        raise OptimizerError(f'an optimizer\'s state_dict has "state" and "param_groups", not {found}')
    groups = osd["param_groups"]
    if not isinstance(groups, list | tuple) or not all(map(_lists_ids, groups)):
        raise OptimizerError('"param_groups" is a list of dicts, each of which lists its ids under "params"')
    if not isinstance(osd["state"], Mapping):
        raise OptimizerError(f'"state" is a dict by id, not {type(osd["state"]).__name__}')


def _lists_ids(group: Any) -> bool:
    ids = group.get("params") if isinstance(group, Mapping) else None
    return isinstance(ids, list | tuple) and all(isinstance(i, int | np.integer | str) for i in ids)


def _check_sizes(found: list[int], expected: list[int]) -> None:
    if len(found) != len(expected):
        raise OptimizerError(
            "loaded state dict has a different number of parameter groups: "
            f"{len(found)}, where the optimizer has {len(expected)}"
        )
    if found != expected:
        raise OptimizerError(
            "loaded state dict contains a parameter group that doesn't match the size of optimizer's group: "
            f"its groups have {found} parameters, the optimizer's {expected}"
        )


def _check_ids(ids: Sequence[Any], entries: Mapping[Any, Any]) -> None:
    if strings := [i for i in [*ids, *entries] if isinstance(i, str)]:
        raise OptimizerError(
            f"ids are ints, and this state has {strings[0]!r}, as JSON makes of them; mend it with "
            'state_dict["state"] = {int(i): entry for i, entry in state_dict["state"].items()} and '
            'group["params"] = [int(i) for i in group["params"]]'
        )
    if twice := [i for i, count in Counter(ids).items() if count > 1]:
        raise OptimizerError(f"ids {twice} stand for several parameters each")


def _check_names(found: Sequence[Sequence[str] | None], rows: Sequence[Sequence[str]]) -> None:
    problems = []
    for i, (names, row) in enumerate(zip(found, rows, strict=True)):
        if names is not None and not _are_names(names):
            problems.append(f"group {i} of the file has the names {names!r}, and they are a list of text")
        elif names is not None and sorted(names) != sorted(row):
            strange, lacking = [n for n in names if n not in row], [n for n in row if n not in names]
            near = "".join(f', did you mean "{to}"?' for to in near_names(strange, lacking).values())
            problems.append(f"group {i} of the file names {quoted(strange)}, and not {quoted(lacking)}{near}")
    if problems:
        raise OptimizerError("param_names are not those of the optimizer:\n\t" + "\n\t".join(problems))


def _are_names(names: Any) -> bool:
    return isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
