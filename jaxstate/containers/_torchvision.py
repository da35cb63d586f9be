"""torchvision's reference scripts, and the many scripts that were made after them.

https://github.com/pytorch/vision/tree/main/references
"""

from jaxstate.containers._kinds import is_namespace, is_optimizer
from jaxstate.containers._roles import Contents, Tool
from jaxstate.containers._training_loop import roles_of

_KEYS = {"model", "optimizer", "lr_scheduler", "epoch", "args"}


def _evidence(contents: Contents) -> str:
    if (
        not _KEYS <= set(contents)
        or not is_namespace(contents["args"])
        or not is_optimizer(contents["optimizer"])
    ):
        return ""
    return "model, optimizer, lr_scheduler, epoch, and the script's arguments under args"


TOOL = Tool("a torchvision reference script", _evidence, roles_of)
