"""Hugging Face's folders: the Trainer's, what `save_pretrained` writes, and PEFT's adapters.

The Trainer's optimizer has two groups, with and without weight decay; ids are counted group by group.

https://huggingface.co/docs/transformers/main_classes/trainer
"""

import re
from collections.abc import Mapping, Sequence

from jaxstate.containers._folder import FolderTool, models_in
from jaxstate.containers._kinds import is_number
from jaxstate.containers._roles import Contents, Part, Roles

_STATE, _ADAPTER = "trainer_state.json", "adapter_config.json"
_TRAINER_ROLES = {
    "optimizer.pt": "optimizer",
    "optimizer.bin": "optimizer",  # under FSDP
    "optimizer_0": "optimizer",
    "scheduler.pt": "scheduler",
    "scaler.pt": "scaler",
}
_ALSO = re.compile(
    r"(trainer_state|config|generation_config|adapter_config)\.json|training_args\.bin|rng_state(_\d+)?\.pth"
)


def _trainer_evidence(names: frozenset[str]) -> str:
    return _STATE if _STATE in names else ""


def _trainer_roles(names: Sequence[str]) -> Roles:
    return {**models_in(names), **{name: role for name, role in _TRAINER_ROLES.items() if name in names}}


def _trainer_told(contents: Contents) -> Sequence[Part]:
    state = contents[_STATE]
    found = {"epoch": "epoch", "step": "global_step"} if isinstance(state, Mapping) else {}
    return [Part(r, f"{_STATE}: {key}", state[key]) for r, key in found.items() if is_number(state.get(key))]


def _adapter_evidence(names: frozenset[str]) -> str:
    return _ADAPTER if _ADAPTER in names and _STATE not in names else ""


def _pretrained_evidence(names: frozenset[str]) -> str:
    others = {_STATE, _ADAPTER} & names or any(name.startswith("random_states_") for name in names)
    found = sorted(models_in(names))
    return "" if others or not found else " and ".join(found + ["config.json"] * ("config.json" in names))


TRAINER = FolderTool(
    "Hugging Face's Trainer", _trainer_evidence, _trainer_roles, _ALSO.fullmatch, _trainer_told
)
ADAPTER = FolderTool("PEFT", _adapter_evidence, models_in, _ALSO.fullmatch)
PRETRAINED = FolderTool("Hugging Face's save_pretrained", _pretrained_evidence, models_in, _ALSO.fullmatch)
