"""Megatron-LM: models cut across ranks, which only its own tools can join. They are refused by name."""

import re
from collections.abc import Iterable

from jaxstate.containers._roles import Contents
from jaxstate.errors import CheckpointError

_KEYS = {"checkpoint_version", "iteration", "model"}
_MORE = {"args", "optimizer", "opt_param_scheduler", "rng_state", "num_floating_point_operations_so_far"}
_FOLDER = re.compile(
    r"mp_rank_\d\d(_\d\d\d)*|iter_\d{7}|latest_checkpointed_iteration\.txt|model_optim_rng\.pt"
)


def refuse_file(contents: Contents) -> None:
    """Raises CheckpointError for the dict of one rank."""
    if _KEYS <= set(contents) and _MORE & set(contents):
        raise _refusal("checkpoint_version and iteration beside the model")


def refuse_folder(names: Iterable[str]) -> None:
    """Raises CheckpointError for a folder of ranks or of iterations."""
    if found := [name for name in names if _FOLDER.fullmatch(name)]:
        raise _refusal(f"the name {found[0]}")


def _refusal(evidence: str) -> CheckpointError:
    return CheckpointError(
        f"a checkpoint of Megatron-LM ({evidence}); its layers are fused and cut across ranks: convert it "
        "with Megatron-LM's tools/checkpoint/convert.py, or Megatron Bridge to Hugging Face, and load that"
    )
