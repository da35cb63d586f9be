"""AdamW: Adam whose weight decay does not pass through the moments, as `torch.optim.AdamW` writes it.

Loshchilov and Hutter, Decoupled weight decay regularization (https://arxiv.org/abs/1711.05101);
https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optax

from jaxstate.binding import Binding
from jaxstate.optim._adam import ADAM, FILLED
from jaxstate.optim._scheduled import Rate
from jaxstate.optim._transform import transformation


def adamw(
    lr: Rate = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    amsgrad: bool = False,
    *,
    maximize: bool = False,
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    param_groups: Sequence[Mapping[str, Any]] | None = None,
    binding: Binding | None = None,
) -> optax.GradientTransformation:
    """`torch.optim.AdamW`: the same signature, defaults, refusals and arithmetic.

    Args:
        lr, betas, eps, weight_decay, amsgrad, maximize: as torch's;
            lr may be a schedule, `count -> rate`.
        foreach, capturable, differentiable, fused: kept and written back; they change no arithmetic here.
        param_groups: torch's dicts, with `"params"` a shell pattern, a list of them, or a predicate of names.
        binding: if given, those names are torch's keys; otherwise they are dotted paths.

    Raises:
        OptimizerError: what torch refuses, in its words; groups that do not divide the parameters.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.array([1.0, 2.0])}
    >>> tx = adamw(lr=0.5, weight_decay=0.25)
    >>> updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
    >>> bool((updates["w"] == -0.5 * 0.25 * params["w"]).all())
    True
    """
    given = {**locals(), "decoupled_weight_decay": True}
    options = {key: given[key] for key, _ in ADAMW.defaults}
    return transformation(ADAMW, options, param_groups, binding)


_CHANGED = {"weight_decay": 1e-2, "decoupled_weight_decay": True}

ADAMW = replace(
    ADAM,
    name="AdamW",
    defaults=tuple((key, _CHANGED.get(key, value)) for key, value in ADAM.defaults),
    # A file written before torch had the key decays as AdamW always did.
    filled=tuple((key, _CHANGED.get(key, value)) for key, value in FILLED),
)
