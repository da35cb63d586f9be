"""What each primitive of JAX does to the dimensions of its arrays: one small function for each kind.

A rule takes the facts, the equation and its operands, and answers with the dimensions of each result.
Programs inside a primitive (jit, scan, cond, ...) are the matter of `_programs`.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

from jaxstate.adapters._axes import Dim
from jaxstate.adapters._facts import Claim, Facts, Label, Pointwise, Value

Dims = tuple[Dim, ...]
Rule = Callable[[Facts, Any, Sequence[Value]], list[Dims]]


def unknown(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    """Nothing is known of the results but that they come from these operands."""
    made = [facts.fresh(_shape(out)) for out in eqn.outvars]
    facts.lose([d for v in values for d in v.dims], [d for dims in made for d in dims], _name(eqn))
    return made


def _elementwise(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    """Each position of the result from the same position of the operands, singletons stretched."""
    shape = _shape(eqn.outvars[0])
    same = [value for value in values if len(value.dims) == len(shape)]
    made: list[Dim] = []
    for i, length in enumerate(shape):
        dims = [value.dims[i] for value in same if value.dims[i]] or [facts.axes.fresh(length)]
        for other in dims[1:]:
            facts.equal(dims[0], other, _name(eqn))
        made.append(dims[0])
    return [tuple(made)]


def _each(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    return [value.dims for value in values]


def _first(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    return [values[0].dims for _ in eqn.outvars]


def _source(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    return [facts.fresh(_shape(out)) for out in eqn.outvars]


def _reduce(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    gone = {int(axis) for axis in eqn.params.get("axes", eqn.params.get("dimensions", ()))}
    kept = [
        tuple(dim for axis, dim in enumerate(value.dims) if axis not in gone)
        for value in values[: len(eqn.outvars)]
    ]
    return kept


def _transpose(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    return [tuple(values[0].dims[axis] for axis in eqn.params["permutation"])]


def _reshape(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    """The same positions in other products; a run that cannot be factored alike is kin as a whole."""
    if prod(_shape(eqn.outvars[0])) == 0:
        return unknown(facts, eqn, values)
    made = facts.fresh(_shape(eqn.outvars[0]))
    dims = [values[0].dims[axis] for axis in eqn.params["dimensions"] or range(len(values[0].dims))]
    flat, target = (tuple(atom for dim in each for atom in dim) for each in (dims, made))
    for old, new in facts.axes.runs(flat, target):
        facts.equal(old, new, _name(eqn))
    facts.merges.append(made)
    return [made]


def _broadcast(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    placed = dict(zip(map(int, eqn.params["broadcast_dimensions"]), values[0].dims, strict=True))
    shape = _shape(eqn.outvars[0])
    return [tuple(placed.get(i) or facts.axes.fresh(length) for i, length in enumerate(shape))]


def _resized(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    """A pool, slice, pad, ...: a dimension of another length is kin, one of the same length is the same."""
    return [_like(facts, eqn, values[0].dims, _shape(out)) for out in eqn.outvars]


def _like(facts: Facts, eqn: Any, dims: Dims, shape: Sequence[int]) -> Dims:
    return tuple(
        dim if facts.axes.length(dim) == length else facts.kin(dim, facts.axes.fresh(length), _name(eqn))
        for dim, length in zip(dims, shape, strict=True)
    )


def _update_slice(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    whole, part = values[0].dims, values[1].dims
    for big, small in zip(whole, part, strict=True):
        if facts.axes.length(big) == facts.axes.length(small):
            facts.equal(big, small, _name(eqn))
        else:
            facts.kin(small, big, _name(eqn))
    return [whole]


def _scatter(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    """The operand's dimensions; how the updates came in is not followed."""
    facts.lose(values[2].dims, values[0].dims, _name(eqn))
    return [values[0].dims]


def _concatenate(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    axis = eqn.params["dimension"]
    [joined] = facts.fresh(_shape(eqn.outvars[0])[axis : axis + 1])
    first = values[0].dims
    for value in values:
        facts.kin(value.dims[axis], joined, _name(eqn))
        facts.equal_all(_without(value.dims, axis), _without(first, axis), _name(eqn))
    return [(*first[:axis], joined, *first[axis + 1 :])]


def _stack(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    axis = eqn.params["axis"]
    for value in values[1:]:
        facts.equal_all(values[0].dims, value.dims, _name(eqn))
    stacked = facts.fresh(_shape(eqn.outvars[0])[axis : axis + 1])
    return [(*values[0].dims[:axis], *stacked, *values[0].dims[axis:])]


def _unstack(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    return [_without(values[0].dims, eqn.params["axis"]) for _ in eqn.outvars]


def _sort(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    """The sorted dimension's positions are new ones, the same in every result."""
    axis = eqn.params["dimension" if "dimension" in eqn.params else "axis"]
    [new] = facts.fresh(_shape(eqn.outvars[0])[axis : axis + 1])
    for value in values:
        facts.kin(value.dims[axis], new, _name(eqn))
    whole = (tuple(values) * len(eqn.outvars))[: len(eqn.outvars)]
    return [(*value.dims[:axis], new, *value.dims[axis + 1 :]) for value in whole]


def _fft(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    dims, count = values[0].dims, len(eqn.params["fft_lengths"])
    shape = _shape(eqn.outvars[0])
    made = [
        facts.kin(dim, facts.axes.fresh(n), _name(eqn))
        for dim, n in list(zip(dims, shape, strict=True))[-count:]
    ]
    return [(*dims[:-count], *made)]


def _gather(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    """Slices of the operand keep its dimensions; the places they are taken from give the others."""
    numbers, shape = eqn.params["dimension_numbers"], _shape(eqn.outvars[0])
    operand, places = values[0].dims, values[1].dims[:-1]
    hidden = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = [dim for axis, dim in enumerate(operand) if axis not in hidden]
    made = list(places)
    for at, dim in zip(numbers.offset_dims, windows, strict=True):
        made.insert(at, _like(facts, eqn, (dim,), shape[at : at + 1])[0])
    for a, b in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        facts.equal(operand[a], places[b], _name(eqn))
    _take(facts, eqn, values, [operand[axis] for axis in numbers.collapsed_slice_dims])
    return [tuple(made)]


def _take(facts: Facts, eqn: Any, values: Sequence[Value], taken: list[Dim]) -> None:
    """One dimension read at fixed places is a resize of it; anything else is not known."""
    places = [dim for dim in values[1].dims[:-1] if dim]
    if len(taken) == len(places) == 1 and not (values[1].of_leaf or values[1].of_input):
        facts.kin(taken[0], places[0], _name(eqn))
    else:
        facts.lose(taken, places, _name(eqn))


def _dot(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    (summed, batched), why = eqn.params["dimension_numbers"], _name(eqn)
    for axes in (summed, batched):
        for i, j in zip(*axes, strict=True):
            facts.equal(values[0].dims[i], values[1].dims[j], why)
    free = [
        tuple(dim for axis, dim in enumerate(value.dims) if axis not in (*summed[side], *batched[side]))
        for side, value in enumerate(values)
    ]
    for side, value in enumerate(values):
        if not value.of_input:
            contracted = tuple(atom for axis in summed[side] for atom in value.dims[axis])
            _product(facts, value.of_leaf, contracted, free[side], free[1 - side])
    return [(*(values[0].dims[axis] for axis in batched[0]), *free[0], *free[1])]


def _product(facts: Facts, of_leaf: bool, contracted: Dim, made: Dims, kept: Dims) -> None:
    """A product with a matrix that no input has a part in: a resize, or a linear layer."""
    for dim in made:
        facts.kin(contracted, dim, "dot_general", indexed=False)
    if of_leaf:
        facts.pointwise.append(Pointwise(kept, made))


def _convolution(facts: Facts, eqn: Any, values: Sequence[Value]) -> list[Dims]:
    numbers, why = eqn.params["dimension_numbers"], _name(eqn)
    image, kernel = values[0].dims, values[1].dims
    shape, out = _shape(eqn.outvars[0]), numbers.out_spec
    made = list(facts.fresh(shape))
    made[out[1]] = kernel[numbers.rhs_spec[0]]
    if eqn.params["batch_group_count"] == 1:
        made[out[0]] = image[numbers.lhs_spec[0]]
    groups = eqn.params["feature_group_count"]
    channels, inner = image[numbers.lhs_spec[1]], kernel[numbers.rhs_spec[1]]
    (facts.equal if groups == 1 else facts.kin)(_in_group(facts, channels, groups), inner, why)
    for dims, spec in ((image, numbers.lhs_spec), (tuple(made), out)):
        facts.claims.extend(_named(facts, dims, spec, groups))
    return [tuple(made)]


def _in_group(facts: Facts, dim: Dim, groups: int) -> Dim:
    """The channels of one model, where a vmap over models made groups of them."""
    atoms = facts.axes.resolve(dim)
    return atoms[1:] if len(atoms) > 1 and facts.axes.length(atoms[:1]) == groups else dim


def _named(facts: Facts, dims: Dims, spec: Sequence[int], groups: int) -> list[Claim]:
    rank, channels = len(spec) - 2, spec[1]
    dims = (*dims[:channels], _in_group(facts, dims[channels], groups), *dims[channels + 1 :])
    labels = [Label("n"), Label("c"), *(Label("s", axis, rank) for axis in range(rank))]
    return [Claim(dims[axis], label) for axis, label in zip(spec, labels, strict=True)]


def _name(eqn: Any) -> str:
    return eqn.primitive.name


def _shape(var: Any) -> tuple[int, ...]:
    return tuple(getattr(var.aval, "shape", ()))


def _without(dims: Dims, axis: int) -> Dims:
    return (*dims[:axis], *dims[axis + 1 :])


_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type
    cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to lgamma log
    log1p logistic lt lt_to max min mul mulhi ne neg nextafter not or polygamma population_count pow pvary
    real reduce_precision regularized_incomplete_beta rem round rsqrt select_n sharding_constraint
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan
    tanh xor zeta
""".split()
_REDUCE = """
    argmax argmin reduce reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor squeeze
"""
_SCAN_LIKE = "cumlogsumexp cummax cummin cumprod cumsum rev"
_RESIZED = """
    dynamic_slice pad reduce_window reduce_window_max reduce_window_min reduce_window_sum slice split tile
"""
_SOURCE = "create_token empty iota random_bits random_seed random_wrap rng_bit_generator rng_uniform"
_SCATTER = "scatter scatter-add scatter-mul scatter-min scatter-max scatter_add scatter_mul"

RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(_ELEMENTWISE, _elementwise),
        **dict.fromkeys(_REDUCE.split(), _reduce),
        **dict.fromkeys(_SCAN_LIKE.split(), _first),
        **dict.fromkeys(_RESIZED.split(), _resized),
        **dict.fromkeys(_SOURCE.split(), _source),
        **dict.fromkeys(_SCATTER.split(), _scatter),
        **dict.fromkeys(("device_put", "optimization_barrier"), _each),
        "broadcast_in_dim": _broadcast,
        "concatenate": _concatenate,
        "conv_general_dilated": _convolution,
        "dot_general": _dot,
        "dynamic_update_slice": _update_slice,
        "fft": _fft,
        "gather": _gather,
        "reshape": _reshape,
        "select_and_scatter_add": lambda facts, eqn, values: [values[1].dims],
        "sort": _sort,
        "stack": _stack,
        "top_k": _sort,
        "transpose": _transpose,
        "unstack": _unstack,
    }
)
