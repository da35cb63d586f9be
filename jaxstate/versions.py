"""Versions: what torch keeps as `_metadata` beside the entries of a state_dict, one for each module."""

from collections.abc import Iterable, Mapping


def versions_of(keys: Iterable[str]) -> dict[str, Mapping[str, int]]:
    """The version of every module that has entries, parents first, as torch's modules have it.

    Modules with running statistics are of version 2; only then does torch ask for their counter.

    >>> versions_of(["bn.weight", "bn.num_batches_tracked"])
    {'': {'version': 1}, 'bn': {'version': 2}}
    """
    modules = {"": 1}
    for key in keys:
        parts = key.split(".")[:-1]
        for stop in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:stop]), 1)
        if key.endswith("num_batches_tracked"):
            modules[".".join(parts)] = 2
    return {module: {"version": version} for module, version in modules.items()}
