"""The strong Wolfe line search of torch's LBFGS: first a bracket around a good point, then its refinement.

Nocedal and Wright, Numerical optimization (2006), algorithms 3.5 and 3.6, with minFunc's safeguards
(https://www.cs.ubc.ca/~schmidtm/Software/minFunc.html). Both phases are one loop here, so that a compiled
program holds the model once: evaluate at `t`, then say where to look next, or that this is the end.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxstate.optim._lbfgs.curvature import largest
from jaxstate.optim._lbfgs.line import (
    Length,
    Line,
    Point,
    choose,
    cubic_minimum,
    mixed,
    sorted_bounds,
)

C1, C2 = 1e-4, 0.9  # sufficient decrease, and how much flatter the slope must become


class Search(NamedTuple):
    """Where the search stands.

    Args:
        t: the trial to evaluate next.
        evals: int32, evaluations so far.
        previous: the point before the last trial.
        bracket: a Point of arrays with a leading axis of two.
        low: int32, which end of the bracket has the smaller loss.
        zooming: True once there is a bracket.
        stuck: True if the last trial was close to an end of the bracket.
        running: False at the end.
    """

    t: Length
    evals: Any
    previous: Point
    bracket: Point
    low: Any
    zooming: Any
    stuck: Any
    running: Any


class Limits(NamedTuple):
    """When to give up: a bracket that moves no parameter by more, and so many evaluations after the first."""

    tolerance_change: Any
    max_ls: Any


def strong_wolfe(line: Line, t: Length, limits: Limits) -> tuple[Point, Any]:
    """The point that torch's search ends at, and how often it has evaluated."""
    both = jax.tree.map(lambda x: jnp.stack([x, x]), line.start)
    no, zero = jnp.bool_(False), jnp.int32(0)
    search = Search(t, zero, line.start, both, zero, no, no, ~no)
    end = lax.while_loop(lambda s: s.running, partial(_evaluated, line=line, limits=limits), search)
    return _end(end, end.low), end.evals


def _evaluated(search: Search, line: Line, limits: Limits) -> Search:
    new = line.evaluate(search.t)
    search = search._replace(evals=search.evals + 1)
    refine, bracket = (partial(phase, line=line, limits=limits) for phase in (_refined, _bracketed))
    return lax.cond(search.zooming, refine, bracket, search, new)


def _bracketed(search: Search, new: Point, line: Line, limits: Limits) -> Search:
    """Until a point is good, or a good one must lie between the last two: further out."""
    count, before = search.evals - 1, search.previous
    exhausted = count >= limits.max_ls
    above = _insufficient(new, line) | ((count > 1) & (new.f >= before.f))
    done = ~exhausted & ~above & _is_flat(new, line)
    found = exhausted | above | done | (new.gtd >= 0)
    first = choose(exhausted, line.start, choose(done, new, before))
    search = search._replace(bracket=jax.tree.map(lambda *ends: jnp.stack(ends), first, new))
    search = _next_trial(search._replace(low=_lower(search.bracket), zooming=found), line, limits)
    near = Length(new.t.value + 0.01 * (new.t.value - before.t.value), mixed(new.t, before.t))
    far = Length(new.t.value * 10, new.t.kind)
    return search._replace(
        t=choose(found, search.t, cubic_minimum(before, new, near, far)),
        previous=new,
        stuck=found & search.stuck,
        running=~found | (search.running & ~exhausted & ~done),
    )


def _refined(search: Search, new: Point, line: Line, limits: Limits) -> Search:
    """The new point takes the place of an end of the bracket."""
    low, high = search.low, 1 - search.low
    bottom, top = _end(search, low), _end(search, high)
    worse = _insufficient(new, line) | (new.f >= bottom.f)
    done = ~worse & _is_flat(new, line)
    crossed = new.gtd * (top.t.value - bottom.t.value) >= 0
    top = choose(worse, new, choose(~done & crossed, bottom, top))
    bottom = choose(worse, bottom, new)
    bracket = jax.tree.map(lambda x, y, z: x.at[low].set(y).at[high].set(z), search.bracket, bottom, top)
    search = search._replace(bracket=bracket, low=jnp.where(worse, _lower(bracket), low))
    search = _next_trial(search, line, limits)
    return search._replace(running=search.running & ~done)


def _next_trial(search: Search, line: Line, limits: Limits) -> Search:
    """The cubic's minimum, but no two in a row close to an end of the bracket, and none beyond it."""
    first, second = _end(search, 0), _end(search, 1)
    least, most = sorted_bounds(first, second)
    t = cubic_minimum(first, second, least, most)
    width = most.value - least.value
    margin = 0.1 * width
    close = jnp.minimum(most.value - t.value, t.value - least.value) < margin
    moved = close & (search.stuck | (t.value >= most.value) | (t.value <= least.value))
    from_most = jnp.abs(t.value - most.value) < jnp.abs(t.value - least.value)
    inside = jnp.where(from_most, most.value - margin, least.value + margin)
    return search._replace(
        t=choose(moved, Length(inside, mixed(first.t, second.t)), t),
        stuck=close & ~moved,
        running=(search.evals - 1 < limits.max_ls) & ~(width * largest(line.d) < limits.tolerance_change),
    )


def _insufficient(new: Point, line: Line) -> Any:
    return new.f > line.start.f + C1 * new.t.value * line.start.gtd


def _is_flat(new: Point, line: Line) -> Any:
    return jnp.abs(new.gtd) <= -C2 * line.start.gtd


def _lower(bracket: Point) -> Any:
    return jnp.where(bracket.f[0] <= bracket.f[1], 0, 1).astype(jnp.int32)


def _end(search: Search, which: Any) -> Point:
    return jax.tree.map(lambda x: x[which], search.bracket)
