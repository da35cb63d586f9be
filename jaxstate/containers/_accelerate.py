"""Accelerate's `save_state`: files numbered from the second on, and the random state of each process.

The `step` among the random states counts within an accumulation of gradients, and is not training's.

https://huggingface.co/docs/accelerate/usage_guides/checkpoint
"""

import re
from collections.abc import Sequence

from jaxstate.containers._folder import FolderTool, models_in
from jaxstate.containers._roles import Roles

_RANDOM = re.compile(r"random_states_\d+\.pkl")
_OPTIMIZER = re.compile(r"optimizer(_\d+)?\.bin|optimizer_\d+")
_SCHEDULER = re.compile(r"scheduler(_\d+)?\.bin")
_ALSO = re.compile(r"random_states_\d+\.pkl|custom_checkpoint_\d+\.pkl|(sampler|dl_state_dict)(_\d+)?\.bin")


def _evidence(names: frozenset[str]) -> str:
    found = sorted(filter(_RANDOM.fullmatch, names))
    return found[0] if found and "trainer_state.json" not in names else ""


def _roles(names: Sequence[str]) -> Roles:
    optimizers = {name: "optimizer" for name in names if _OPTIMIZER.fullmatch(name)}
    schedulers = {name: "scheduler" for name in names if _SCHEDULER.fullmatch(name)}
    scaler = {"scaler.pt": "scaler"} if "scaler.pt" in names else {}
    return {**models_in(names), **optimizers, **schedulers, **scaler}


TOOL = FolderTool("Accelerate", _evidence, _roles, _ALSO.fullmatch)
