"""Programs inside programs: how the dimensions go through a jaxpr, and through jit, scan, while and cond."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from jaxstate.adapters._facts import Facts, Value
from jaxstate.adapters._primitives import RULES, unknown


def follow(facts: Facts, jaxpr: Any, values: Iterable[Value]) -> list[Value]:
    """The results of a jaxpr for these arguments."""
    known: dict[Any, Value] = {var: Value(facts.fresh(var.aval.shape)) for var in jaxpr.constvars}
    known |= zip(jaxpr.invars, values, strict=True)

    def read(var: Any) -> Value:
        return known[var] if not isinstance(var, Literal) else Value(facts.fresh(np.shape(var.val)))

    for eqn in jaxpr.eqns:
        known |= zip(eqn.outvars, _results(facts, eqn, [read(var) for var in eqn.invars]), strict=True)
    return [read(var) for var in jaxpr.outvars]


def _results(facts: Facts, eqn: Any, values: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name in _PROGRAMS:
        return _PROGRAMS[name](facts, eqn, values)
    if name not in RULES and (inner := _inner(eqn)) is not None:
        return follow(facts, inner, values)
    return [_made(values, dims) for dims in RULES.get(name, unknown)(facts, eqn, values)]


def _made(values: Sequence[Value], dims: Any) -> Value:
    return Value(dims, any(v.of_leaf for v in values), any(v.of_input for v in values))


def _inner(eqn: Any) -> Any:
    """The one program that a call runs on its own operands: jit, remat, custom_jvp, custom_vjp, ..."""
    found = [_open(value) for value in eqn.params.values() if isinstance(value, Jaxpr | ClosedJaxpr)]
    shapes = [[var.aval.shape for var in (*eqn.invars, *eqn.outvars)]]
    fits = shapes == [[var.aval.shape for var in (*inner.invars, *inner.outvars)] for inner in found]
    return found[0] if fits else None


def _open(program: Any) -> Any:
    return program.jaxpr if isinstance(program, ClosedJaxpr) else program


def _cond(facts: Facts, eqn: Any, values: list[Value]) -> list[Value]:
    """The branches agree on every dimension."""
    first, *others = (follow(facts, _open(branch), values[1:]) for branch in eqn.params["branches"])
    for other in others:
        _agree(facts, first, other, "cond")
    return [_made(values, value.dims) for value in first]


def _scan(facts: Facts, eqn: Any, values: list[Value]) -> list[Value]:
    """The carry keeps its dimensions; what is scanned over loses its first and what is stacked gains one."""
    fixed, carried = _scan_bounds(eqn.params)
    carry = [_made(values, value.dims) for value in values[fixed:carried]]
    steps = [value._replace(dims=value.dims[1:]) for value in values[carried:]]
    results = follow(facts, _open(eqn.params["jaxpr"]), [*values[:fixed], *carry, *steps])
    _agree(facts, carry, results, "scan")
    length = _leading(facts, eqn, values[carried:])
    return [*carry, *(value._replace(dims=(length, *value.dims)) for value in results[len(carry) :])]


def _scan_bounds(params: Mapping[str, Any]) -> tuple[int, int]:
    """Where a scan's constants end among its operands, and where its carry ends; jax 0.12 names them anew."""
    if "ft_in" in params:
        constants, carry, _ = (len(part) for part in params["ft_in"].unpack())
    else:
        constants, carry = params["num_consts"], params["num_carry"]
    return constants, constants + carry


def _leading(facts: Facts, eqn: Any, scanned: list[Value]) -> tuple[int, ...]:
    lengths = [value.dims[0] for value in scanned] or [facts.axes.fresh(eqn.params["length"])]
    for other in lengths[1:]:
        facts.equal(lengths[0], other, "scan")
    return lengths[0]


def _while(facts: Facts, eqn: Any, values: list[Value]) -> list[Value]:
    skipped, fixed = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = [_made(values, value.dims) for value in values[skipped + fixed :]]
    body = values[skipped : skipped + fixed]
    results = follow(facts, _open(eqn.params["body_jaxpr"]), [*body, *carry])
    _agree(facts, carry, results, "while")
    return carry


def _agree(facts: Facts, left: Sequence[Value], right: Sequence[Value], why: str) -> None:
    for a, b in zip(left, right, strict=False):
        facts.equal_all(a.dims, b.dims, why)


_PROGRAMS: Mapping[str, Callable[[Facts, Any, list[Value]], list[Value]]] = MappingProxyType(
    {"cond": _cond, "scan": _scan, "while": _while}
)
