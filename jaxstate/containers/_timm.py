"""timm's `CheckpointSaver`: `version` 2 counts the epoch that is done, before it the one that comes next.

https://github.com/huggingface/pytorch-image-models/blob/main/timm/utils/checkpoint_saver.py
"""

from jaxstate.containers._checkpoint import said
from jaxstate.containers._roles import Contents, Roles, Tool
from jaxstate.containers._training_loop import roles_of

_KEYS = {"epoch", "arch", "state_dict", "optimizer", "version"}


def _evidence(contents: Contents) -> str:
    if not _KEYS <= set(contents) or not isinstance(contents["arch"], str):
        return ""
    return f"arch, state_dict, optimizer and version {said(contents['version'])}"


def _roles(contents: Contents) -> Roles:
    return {**roles_of(contents), "state_dict": "model"}


TOOL = Tool("timm", _evidence, _roles)
