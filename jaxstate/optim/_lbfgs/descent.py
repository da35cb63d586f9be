"""Descent: the iterations that torch's LBFGS makes in one `step(closure)`.

Each takes a direction, goes along it, and looks whether to go on. All of torch's reasons to stop are in
`_is_over`; its counts of iterations and evaluations are kept, since they are in its file.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxstate.optim._double import Double
from jaxstate.optim._lbfgs.curvature import Memory, direction, dot, largest, remember
from jaxstate.optim._lbfgs.line import Kind, Length, Line, Point, choose
from jaxstate.optim._lbfgs.strong_wolfe import Limits, strong_wolfe
from jaxstate.optim._param_groups import ParamGroup

# (N,) parameters to their loss and their (N,) gradient.
Objective = Callable[[Any], tuple[Any, Any]]


class Descent(NamedTuple):
    """Where the step stands.

    Args:
        x, loss, g: the parameters, and the last loss and gradient.
        memory: of `_curvature`.
        n_iter: int32, iterations of all steps.
        n, evals: int32, iterations and evaluations of this one.
        running: False at the end.
    """

    x: Any
    loss: Any
    g: Any
    memory: Memory
    n_iter: Any
    n: Any
    evals: Any
    running: Any


def descended(start: Descent, group: ParamGroup, f: Objective) -> Descent:
    """The end of one step of torch's, which has evaluated once at its start."""
    running = ~(largest(start.g) <= _at(group["tolerance_grad"], start.g))
    body = partial(_iterated, group=group, f=f)
    end = lax.while_loop(
        lambda s: s.running & (s.n < whole(group["max_iter"])), body, start._replace(running=running)
    )
    # Where torch has not had `d` in its dict before, `al` comes first; and without an iteration `d` is None.
    unset, made = start.memory.t_kind == Kind.ABSENT, (end.n > 0) & (end.n_iter > 1)
    place = jnp.where(made & (start.memory.al_place == 0), jnp.where(unset, 1, 2), start.memory.al_place)
    kind = jnp.where(running & (end.memory.t_kind == Kind.ABSENT), Kind.NONE, end.memory.t_kind)
    evals = start.memory.func_evals + end.evals
    return end._replace(memory=replace(end.memory, func_evals=evals, al_place=place, t_kind=kind))


def _iterated(s: Descent, group: ParamGroup, f: Objective) -> Descent:
    n_iter, n = s.n_iter + 1, s.n + 1
    memory = remember(s.memory, s.g, n_iter > 1)
    d, al = direction(memory, s.g)
    t = choose(n_iter == 1, _first_length(s.g, group), _usual_length(s.g, group))
    line = _line(s, d, f)
    # No descent to speak of: torch stops before it moves.
    level = line.start.gtd > -_at(group["tolerance_change"], s.g)
    go = _searched(line, s, group) if group["line_search_fn"] else _moved(line, n, group)
    end, evals = lax.cond(level, lambda t: (line.start._replace(t=t), jnp.int32(0)), go, t)
    memory = replace(
        memory,
        d=d,
        al=al,
        t=_as_double(end.t, group["lr"]),
        t_kind=end.t.kind,
        prev_flat_grad=s.g,
        prev_loss=Double.of(s.loss, memory.prev_loss.parts.dtype),
    )
    x = jnp.where(level, s.x, s.x + end.t.value * d)
    new = Descent(x, end.f, end.g, memory, n_iter, n, s.evals + evals, s.running)
    return new._replace(running=~(level | _is_over(new, s.loss, end.t, group)))


def _is_over(s: Descent, prev_loss: Any, t: Length, group: ParamGroup) -> Any:
    tolerance = _at(group["tolerance_change"], s.g)
    return (
        (s.n == whole(group["max_iter"]))
        | (s.evals >= whole(group["max_eval"]))
        | (largest(s.g) <= _at(group["tolerance_grad"], s.g))
        | (largest(s.memory.d * t.value) <= tolerance)
        | (jnp.abs(s.loss - prev_loss) < tolerance)
    )


def _first_length(g: Any, group: ParamGroup) -> Length:
    """t = min(1, 1 / |g|_1) lr: where there is no curvature yet, no element moves further than lr."""
    inverse, lr = 1 / jnp.sum(jnp.abs(g)), _at(group["lr"], g)
    return choose(inverse < 1, Length(inverse * lr, _kind(Kind.TENSOR)), Length(lr, _kind(Kind.FLOAT)))


def _usual_length(g: Any, group: ParamGroup) -> Length:
    return Length(_at(group["lr"], g), _kind(Kind.INT if group.options["lr"] is int else Kind.FLOAT))


def _moved(line: Line, n: Any, group: ParamGroup) -> Callable[[Length], tuple[Point, Any]]:
    """All the way, without a look; what nothing would come of in the last iteration is not evaluated."""
    last = n == whole(group["max_iter"])

    def go(t: Length) -> tuple[Point, Any]:
        end = lax.cond(last, lambda t: line.start._replace(t=t), line.evaluate, t)
        return end, jnp.where(last, 0, 1).astype(jnp.int32)

    return go


def _searched(line: Line, s: Descent, group: ParamGroup) -> Callable[[Length], tuple[Point, Any]]:
    limits = Limits(_at(group["tolerance_change"], s.g), whole(group["max_eval"]) - s.evals)
    return lambda t: strong_wolfe(line, t, limits)


def _line(s: Descent, d: Any, f: Objective) -> Line:
    def evaluate(t: Length) -> Point:
        loss, g = f(s.x + t.value * d)
        return Point(t, loss, g, dot(g, d))

    origin = Length(jnp.zeros((), s.g.dtype), _kind(Kind.INT))
    return Line(Point(origin, s.loss, s.g, dot(s.g, d)), d, evaluate)


def _as_double(t: Length, lr: Double) -> Double:
    """The length; where it is the learning rate, all of its digits."""
    same = (t.kind != Kind.TENSOR) & (t.value == _at(lr, t.value))
    found = Double.of(t.value, lr.parts.dtype)
    return Double(jnp.where(same, lr.parts, found.parts))


def whole(number: Double) -> Any:
    """A number that is an integer, as int32."""
    return jnp.sum(number.parts.astype(jnp.int32))


def _at(number: Double, array: Any) -> Any:
    return number.high.astype(array.dtype)


def _kind(kind: Kind) -> Any:
    return jnp.int32(kind)
