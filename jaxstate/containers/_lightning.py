"""Lightning's `.ckpt`: lists of optimizers and of schedulers, and how far each of its loops has come.

With the callback `WeightAveraging`, `state_dict` is the average and `current_model_state` is the model that
is trained; without it `state_dict` is the model. A precision plugin's scaler stands under its class name.

https://lightning.ai/docs/pytorch/stable/common/checkpointing_intermediate.html
"""

from jaxstate.containers._checkpoint import said
from jaxstate.containers._roles import Contents, Roles, Tool

_VERSION = "pytorch-lightning_version"
_ROLES = {
    "optimizer_states": "optimizer",
    "lr_schedulers": "scheduler",
    "MixedPrecision": "scaler",
    "MixedPrecisionPlugin": "scaler",
    "NativeMixedPrecisionPlugin": "scaler",
    "native_amp_scaling_state": "scaler",
    "epoch": "epoch",
    "global_step": "step",
}


def _evidence(contents: Contents) -> str:
    if _VERSION not in contents or "state_dict" not in contents:
        return ""
    return f"{_VERSION} {said(contents[_VERSION])}"


def _roles(contents: Contents) -> Roles:
    averaged = "averaging_state" in contents and "current_model_state" in contents
    models = {"current_model_state": "model", "state_dict": "ema"} if averaged else {"state_dict": "model"}
    return {place: role for place, role in {**models, **_ROLES}.items() if place in contents}


TOOL = Tool("Lightning", _evidence, _roles)
