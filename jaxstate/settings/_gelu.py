"""GELU: torch's is exact, JAX's approximated by tanh, unless either is told otherwise.

JAX computes it in a plain function, which no module shows. The program does: an exact GELU has an erf in it.
"""

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax

EXACT, BY_TANH = "exact", "approximated by tanh"
MENDS = {EXACT: "nnx.gelu(x, approximate=False)", BY_TANH: "nnx.gelu(x, approximate=True)"}

# Modules of transformers, whose names tell, and the words of its configs.
_KINDS = {
    **{name: EXACT for name in ("GELUActivation", "gelu", "gelu_python")},
    **{name: BY_TANH for name in ("NewGELUActivation", "FastGELUActivation", "PytorchGELUTanh", "GELUTanh")},
    **{name: BY_TANH for name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh")},
}


def gelu_of(module: Any) -> str:
    """Which GELU a torch module computes; "" if it is none."""
    if type(module).__name__ == "GELU":
        return EXACT if module.approximate == "none" else BY_TANH
    if getattr(module, "activation", None) is sys.modules["torch"].nn.functional.gelu:
        return EXACT
    return gelu_named(type(module).__name__)


def gelu_named(name: Any) -> str:
    """The same by a name: of a class of transformers, or of an activation in a config.

    >>> gelu_named("gelu_new"), gelu_named("silu")
    ('approximated by tanh', '')
    """
    return _KINDS.get(name, "") if isinstance(name, str) else ""


def other_gelu(kinds: Mapping[str, str], used: set[str]) -> tuple[str, str] | None:
    """Whose GELU the program computes the other way, and which way that is; None if that is not sure.

    Args:
        kinds: which GELU torch computes, by the names of its modules.
        used: the primitives of JAX's program.

    >>> other_gelu({"act": "exact"}, {"tanh", "mul"})
    ('act', 'approximated by tanh')
    >>> other_gelu({"act": "exact"}, {"tanh", "erf"})
    """
    exact = [name for name, kind in kinds.items() if kind == EXACT]
    has_erf, has_tanh = bool(used & {"erf", "erfc", "erf_inv"}), "tanh" in used
    if exact and has_tanh and not has_erf:
        return exact[0], BY_TANH
    if kinds and not exact and has_erf and not has_tanh:
        return next(iter(kinds)), EXACT
    return None


def primitives_in(jaxpr: Any) -> Iterator[str]:
    """The names of all primitives in a program, and in the programs that it calls."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            yield from primitives_in(inner) if hasattr(inner, "eqns") else ()
