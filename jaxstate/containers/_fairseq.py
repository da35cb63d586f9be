"""fairseq: the optimizer's last state beside a history, in whose last entry the scheduler and the step are.

With `--fp16` an optimizer keeps one flat parameter, which js.optim then refuses by its number of parameters.

https://github.com/facebookresearch/fairseq/blob/main/fairseq/checkpoint_utils.py
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxstate.containers._kinds import is_number, is_optimizer, is_state_dict
from jaxstate.containers._roles import Contents, Part, Roles, Tool

_KEYS = {"model", "optimizer_history", "extra_state"}


def _evidence(contents: Contents) -> str:
    config = [place for place in ("cfg", "args") if contents.get(place) is not None]
    if not _KEYS <= set(contents) or not config:
        return ""
    return f"model, optimizer_history, extra_state and {' and '.join(config)}"


def _roles(contents: Contents) -> Roles:
    optimizer = is_optimizer(contents.get("last_optimizer_state"))
    return {"model": "model", **({"last_optimizer_state": "optimizer"} if optimizer else {})}


def _told(contents: Contents) -> Sequence[Part]:
    return [*_of_history(contents["optimizer_history"]), *_of_extra(contents["extra_state"])]


def _of_history(history: Any) -> Iterator[Part]:
    last = history[-1] if isinstance(history, list) and history else None
    if isinstance(last, Mapping):
        if is_number(last.get("num_updates")):
            yield Part("step", "optimizer_history[-1].num_updates", last["num_updates"])
        if isinstance(last.get("lr_scheduler_state"), Mapping):
            yield Part("scheduler", "optimizer_history[-1].lr_scheduler_state", last["lr_scheduler_state"])


def _of_extra(extra: Any) -> Iterator[Part]:
    iterator = extra.get("train_iterator") if isinstance(extra, Mapping) else None
    if isinstance(iterator, Mapping) and is_number(iterator.get("epoch")):
        yield Part("epoch", "extra_state.train_iterator.epoch", iterator["epoch"])
    if isinstance(extra, Mapping) and is_state_dict(extra.get("ema")):
        yield Part("ema", "extra_state.ema", extra["ema"])


TOOL = Tool("fairseq", _evidence, _roles, _told)
